package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/enrollgate/enrollgate/gateway/audit"
	"github.com/enrollgate/enrollgate/gateway/audit/witness"
	"github.com/enrollgate/enrollgate/gateway/config"
	"golang.org/x/mod/sumdb/tlog"
)

// witnessPath is where this gateway cosigns other instances' logs: witnessPath + "add-checkpoint".
const witnessPath = "/witness/"

const witnessTimeout = 10 * time.Second

// newWitnesses makes the clients of the configured witnesses.
func newWitnesses(list []config.WitnessAt) ([]*witness.Client, error) {
	var out []*witness.Client
	for _, at := range list {
		key, err := witness.NewVerifier(at.Key)
		if err != nil {
			return nil, err
		}
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if at.CAFile != "" {
			text, err := os.ReadFile(at.CAFile)
			if err != nil {
				return nil, fmt.Errorf("witness %s: %w", at.URL, err)
			}
			t.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
				return nil, fmt.Errorf("witness %s: %s has no certificate in PEM form", at.URL, at.CAFile)
			}
		}
		out = append(out, &witness.Client{HTTP: &http.Client{Transport: t, Timeout: witnessTimeout}, URL: at.URL, Key: key})
	}
	return out, nil
}

// Witness is this gateway as a witness of the logs in audit.witness_for. Its key is made on first use.
func (g *Gateway) Witness() (*witness.Witness, error) {
	key, err := loadEd25519(filepath.Join(g.Config.Data, "witness.key"), g.secret)
	if err != nil {
		return nil, fmt.Errorf("the witness's key: %w", err)
	}
	return witness.New(g.DB, witness.NewSigner(g.Config.PublicName, key, g.now), g.Config.Audit.WitnessFor, g.now)
}

// witnessHandler answers other instances. Their proof is the log's signature on what they submit.
func (g *Gateway) witnessHandler() (http.Handler, error) {
	if len(g.Config.Audit.WitnessFor) == 0 {
		return http.NotFoundHandler(), nil
	}
	w, err := g.Witness()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST "+witnessPath+"add-checkpoint", w)
	return mux, nil
}

// Cosign signs the audit log as it is, sends the checkpoint to every witness and keeps their cosignatures. All are tried; the
// errors are joined. One call at a time: an older checkpoint that arrives after a newer one would look like a log put back.
func (g *Gateway) Cosign(ctx context.Context) (*audit.Checkpoint, error) {
	g.cosigning.Lock()
	defer g.cosigning.Unlock()
	c, err := g.Checkpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("the audit log cannot be signed: %w", err)
	}
	var all error
	for _, w := range g.witnesses {
		sent, err := g.cosign(ctx, w, c)
		g.metrics.witnessed(w.Key.Name(), sent.Size, err)
		all = errors.Join(all, err)
	}
	return c, all
}

// cosign sends a checkpoint to one witness, and a newer one where another process on the same database was faster. It returns
// the one sent last.
func (g *Gateway) cosign(ctx context.Context, w *witness.Client, c *audit.Checkpoint) (*audit.Checkpoint, error) {
	submit := func() (string, error) {
		return w.Submit(ctx, c, func(old int64) (tlog.TreeProof, error) { return audit.ProveBegin(ctx, g.DB.SQL, c, old) })
	}
	lines, err := submit()
	if _, ahead := errors.AsType[*witness.AheadError](err); ahead {
		newer, failed := g.Checkpoint(ctx)
		if failed != nil {
			return c, errors.Join(err, failed)
		}
		c = newer
		lines, err = submit()
	}
	if err != nil {
		return c, err
	}
	return c, g.DB.Write(ctx, func(tx *sql.Tx) error { return audit.Cosign(ctx, tx, c, lines) })
}

// Witnessed is what a witness has cosigned last.
type Witnessed struct {
	Witness string     `json:"witness"`
	Lines   int64      `json:"lines"`
	Time    *time.Time `json:"time,omitempty"`
}

// Witnessed are the newest cosignatures of the configured witnesses.
func (g *Gateway) Witnessed(ctx context.Context) ([]Witnessed, error) {
	out := []Witnessed{}
	for _, w := range g.witnesses {
		c, sig, err := audit.LastCosigned(ctx, g.DB.SQL, w.Key)
		if err != nil {
			return nil, err
		}
		found := Witnessed{Witness: w.Key.Name()}
		if c != nil {
			t, err := witness.Time(*sig)
			if err != nil {
				return nil, err
			}
			found.Lines, found.Time = c.Size, &t
		}
		out = append(out, found)
	}
	return out, nil
}
