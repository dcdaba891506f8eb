// Command vaultserver is HashiCorp Vault's own PKI engine and AppRole login behind Vault's HTTP paths, in memory, for tests. What is not
// Vault's own code is the routing, the tokens (auth/token/lookup-self, renew-self, revoke-self) and the mapping of namespaces; statuses are
// from Vault's logical.RespondErrorCommon. It prints its address.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/sdk/logical"
)

type mount struct {
	path    string
	backend logical.Backend
	storage logical.Storage
}

type token struct {
	ends      time.Time // zero: never
	ttl       time.Duration
	max       time.Time
	renewable bool
}

type server struct {
	namespace string
	mounts    []*mount

	mu     sync.Mutex
	tokens map[string]*token
}

func main() {
	namespace := flag.String("namespace", "", "that requests have to name")
	root := flag.String("root", "root", "a token that may do everything")
	mounts := flag.String("mounts", "pki", "paths of PKI engines, separated by commas")
	flag.Parse()
	s := &server{namespace: *namespace, tokens: map[string]*token{*root: {}}}
	for path := range strings.SplitSeq(*mounts, ",") {
		s.mount(path, pki.Factory)
	}
	s.mount("auth/approle", approle.Factory)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	log.Fatal((&http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}).Serve(l))
}

func (s *server) mount(path string, factory logical.Factory) {
	ctx, storage := context.Background(), &logical.InmemStorage{}
	b, err := factory(ctx, &logical.BackendConfig{StorageView: storage, Logger: hclog.NewNullLogger(), BackendUUID: path, Config: map[string]string{},
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: 32 * 24 * time.Hour, MaxLeaseTTLVal: 10 * 365 * 24 * time.Hour}})
	if err == nil {
		err = b.Initialize(ctx, &logical.InitializationRequest{Storage: storage})
	}
	if err != nil {
		log.Fatal(err)
	}
	s.mounts = append(s.mounts, &mount{path + "/", b, storage})
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	body := map[string]any{}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil && r.ContentLength > 0 {
		refuse(w, http.StatusBadRequest, "failed to parse JSON input: "+err.Error())
		return
	}
	if r.Header.Get("X-Vault-Namespace") != s.namespace {
		refuse(w, http.StatusNotFound, "no handler for route in this namespace")
		return
	}
	name := r.Header.Get("X-Vault-Token")
	known := s.valid(name)
	if !known && path != "auth/approle/login" && !(strings.Contains(path, "/issuer/") && strings.HasSuffix(path, "/json")) {
		refuse(w, http.StatusForbidden, "permission denied")
		return
	}
	if s.token(w, path, name) {
		return
	}
	for _, m := range s.mounts {
		if rest, ok := strings.CutPrefix(path, m.path); ok {
			s.handle(w, r, m, rest, body)
			return
		}
	}
	refuse(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
}

func (s *server) valid(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[name]
	return t != nil && (t.ends.IsZero() || time.Now().Before(t.ends))
}

// token serves what Vault's token store does.
func (s *server) token(w http.ResponseWriter, path, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[name]
	switch path {
	case "auth/token/lookup-self":
		ttl := int64(0)
		if !t.ends.IsZero() {
			ttl = int64(time.Until(t.ends).Seconds())
		}
		answer(w, map[string]any{"data": map[string]any{"ttl": ttl, "renewable": t.renewable}})
	case "auth/token/renew-self":
		if !t.renewable {
			refuse(w, http.StatusBadRequest, "lease is not renewable")
			return true
		}
		if t.ends = time.Now().Add(t.ttl); !t.max.IsZero() && t.ends.After(t.max) {
			t.ends = t.max
		}
		answer(w, map[string]any{"auth": map[string]any{"client_token": name, "lease_duration": int64(time.Until(t.ends).Round(time.Second).Seconds()), "renewable": true}})
	case "auth/token/revoke-self":
		delete(s.tokens, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		return false
	}
	return true
}

func (s *server) handle(w http.ResponseWriter, r *http.Request, m *mount, path string, body map[string]any) {
	req := &logical.Request{ID: "test", Path: path, Storage: m.storage, MountPoint: m.path, Data: body, Connection: &logical.Connection{RemoteAddr: "127.0.0.1"}, Headers: r.Header}
	switch {
	case r.Method == "LIST" || r.Method == http.MethodGet && r.URL.Query().Get("list") == "true":
		req.Operation, req.Path = logical.ListOperation, strings.TrimSuffix(path, "/")+"/"
	case r.Method == http.MethodGet:
		req.Operation = logical.ReadOperation
	case r.Method == http.MethodDelete:
		req.Operation = logical.DeleteOperation
	default:
		req.Operation = logical.UpdateOperation
		if check, exists, err := m.backend.HandleExistenceCheck(r.Context(), req); err == nil && check && !exists {
			req.Operation = logical.CreateOperation
		}
	}
	res, err := m.backend.HandleRequest(r.Context(), req)
	if status, err := logical.RespondErrorCommon(req, res, err); err != nil || status != 0 {
		text := []string{}
		if err != nil {
			text = append(text, err.Error())
		}
		refuse(w, status, text...)
		return
	}
	if res == nil || len(res.Data) == 0 && res.Auth == nil && len(res.Warnings) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if raw, ok := res.Data[logical.HTTPRawBody].([]byte); ok {
		_, _ = w.Write(raw)
		return
	}
	out := map[string]any{"request_id": req.ID, "data": maps.Clone(res.Data), "warnings": res.Warnings}
	if res.Auth != nil {
		out["data"], out["auth"] = nil, s.login(res.Auth)
	}
	answer(w, out)
}

// login makes the token of a login.
func (s *server) login(auth *logical.Auth) map[string]any {
	var random [16]byte
	_, _ = rand.Read(random[:])
	name := "hvs." + hex.EncodeToString(random[:])
	t := &token{ttl: auth.TTL, ends: time.Now().Add(auth.TTL), renewable: auth.Renewable}
	if auth.MaxTTL > 0 {
		t.max = time.Now().Add(auth.MaxTTL)
	}
	s.mu.Lock()
	s.tokens[name] = t
	s.mu.Unlock()
	return map[string]any{"client_token": name, "lease_duration": int64(auth.TTL.Seconds()), "renewable": auth.Renewable}
}

func answer(w http.ResponseWriter, out any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func refuse(w http.ResponseWriter, status int, errors ...string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": errors})
}
