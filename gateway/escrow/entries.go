package escrow

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Has tells whether the private key of a public key (SubjectPublicKeyInfo) is archived.
func (e *Escrow) Has(ctx context.Context, spki []byte) (bool, error) {
	keyID := sha256.Sum256(spki)
	var n int
	if err := e.o.DB.SQL.QueryRowContext(ctx, "SELECT count(*) FROM escrow_records WHERE key_id = ? AND destroyed = 0", keyID[:]).Scan(&n); err != nil {
		return false, fmt.Errorf("escrow: %w", err)
	}
	return n > 0, nil
}

// Entry is one archived key as list shows it.
type Entry struct {
	ID         int64     `json:"id"`
	Created    time.Time `json:"created"`
	RequestID  int64     `json:"request_id,omitempty"`
	Source     string    `json:"source"`
	Owner      string    `json:"owner"`
	Subject    string    `json:"subject"`
	Algorithm  string    `json:"algorithm"`
	Bits       int       `json:"bits"`
	KeyID      string    `json:"key_id"`
	Serial     string    `json:"serial,omitempty"`
	State      string    `json:"state,omitempty"` // of the request
	Recipients []string  `json:"recipients"`
	Policy     string    `json:"policy"`
	Required   int       `json:"required"` // agents that it takes
	Format     int       `json:"-"`
	Proven     time.Time `json:"proven,omitzero"`     // when it was last proven that agents can open it
	Held       *Note     `json:"held,omitempty"`      // it must not be destroyed
	Destroyed  *Note     `json:"destroyed,omitempty"` // only the row is left

	sealed, certificate []byte
	ca                  string
}

// Note says when somebody did something to an archived key, and why.
type Note struct {
	Time   time.Time `json:"time"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// Gone is the error that the key was destroyed; nil where it was not.
func (n *Entry) Gone() error {
	if n.Destroyed == nil {
		return nil
	}
	return fmt.Errorf("archived key %d was destroyed at %s by %s (%s): nobody can recover it", n.ID, n.Destroyed.Time.Format(time.RFC3339), n.Destroyed.By, n.Destroyed.Reason)
}

// entryColumns is a query for entries, without what is sealed: a list of keys does not read them.
const entryColumns = `SELECT e.id, e.created, coalesce(e.request_id, 0), e.source, e.owner, e.subject, e.algorithm, e.bits, e.key_id, e.recipients,
	e.policy, e.required, e.format, e.proven, e.held, e.held_by, e.held_why, e.destroyed, e.destroyed_by, e.destroyed_why,
	coalesce(nullif(e.serial, ''), r.serial, ''), coalesce(r.state, ''), coalesce(r.ca, ''), coalesce(e.certificate, r.certificate), `

const (
	fromRecords = " FROM escrow_records e LEFT JOIN requests r ON r.id = e.request_id "
	fromWords   = " FROM escrow_words w JOIN escrow_records e ON e.id = w.record LEFT JOIN requests r ON r.id = e.request_id "
)

// ErrNotFound is an archived key that does not exist.
var ErrNotFound = errors.New("no such archived key")

// Get returns one archived key by number, or ErrNotFound.
func (e *Escrow) Get(ctx context.Context, id int64) (*Entry, error) {
	list, err := e.entries(ctx, entryColumns+"e.sealed"+fromRecords+"WHERE e.id = ?", id)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("archived key %d: %w", id, ErrNotFound)
	}
	return &list[0], nil
}

// BySerial returns the archived key of a certificate, the newest of several, or ErrNotFound. Serial numbers are hexadecimal.
func (e *Escrow) BySerial(ctx context.Context, serial string) (*Entry, error) {
	list, err := e.Search(ctx, Query{Serial: serial, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("archived key of certificate %s: %w", serial, ErrNotFound)
	}
	return e.Get(ctx, list[0].ID)
}

// List returns a person's archived keys, newest first, without what is sealed; owner "" means everybody's.
func (e *Escrow) List(ctx context.Context, owner string, limit int) ([]Entry, error) {
	return e.Search(ctx, Query{Owner: owner, Limit: limit})
}

// Query says which archived keys are looked for: those that are all that it names.
type Query struct {
	Owner   string // alice, alice@CORP.EXAMPLE, or the beginning of a name: ali*
	Subject string // words of the subject, whole ones, in any order
	Serial  string // of the certificate, hexadecimal
	Policy  string
	Since   time.Time // archived then or later
	Until   time.Time // archived before
	After   int64     // only what comes after this number in the list: the last one of the page before
	Limit   int
}

// Search returns archived keys, newest first, without what is sealed. It costs as much as it finds, however many there are.
func (e *Escrow) Search(ctx context.Context, q Query) ([]Entry, error) {
	list := words(q.Subject)
	if len(list) == 0 && q.Subject != "" {
		return nil, fmt.Errorf("subject %q has no word to look for", q.Subject)
	}
	if err := e.rarestFirst(ctx, list); err != nil {
		return nil, err
	}
	s := search{from: fromRecords, order: "e.id"}
	for i, word := range list {
		if i == 0 {
			s.from, s.order = fromWords, "w.record"
			s.add("w.word = ?", word)
		} else {
			s.add("EXISTS (SELECT 1 FROM escrow_words x WHERE x.word = ? AND x.record = w.record)", word)
		}
	}
	if q.Owner != "" {
		condition, values := ownerIs(q.Owner)
		s.add("e.id IN ("+condition+")", values...)
	}
	if q.Serial != "" {
		n, ok := new(big.Int).SetString(q.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("serial number %q is not hexadecimal", q.Serial)
		}
		s.add(`e.id IN (SELECT s.id FROM escrow_records s JOIN requests t ON t.id = s.request_id WHERE t.serial = ?
			UNION ALL SELECT id FROM escrow_records WHERE source = 'import' AND serial = ?)`, n.Text(16), n.Text(16))
	}
	if q.Policy != "" {
		s.add("e.policy = ?", q.Policy)
	}
	s.page(q)
	text := entryColumns + "NULL" + s.from
	if len(s.where) > 0 {
		text += "WHERE " + strings.Join(s.where, " AND ")
	}
	return e.entries(ctx, text+" ORDER BY "+s.order+" DESC LIMIT ?", append(s.args, q.Limit)...)
}

// search is a query in the making.
type search struct {
	from, order string
	where       []string
	args        []any
}

func (s *search) add(condition string, args ...any) {
	s.where, s.args = append(s.where, condition), append(s.args, args...)
}

// page adds the conditions on times and on where the page begins.
func (s *search) page(q Query) {
	if !q.Since.IsZero() {
		s.add("e.created >= ?", q.Since.UnixMilli())
	}
	if !q.Until.IsZero() {
		s.add("e.created < ?", q.Until.UnixMilli())
	}
	byTime := s.order == "e.id" && !(q.Since.IsZero() && q.Until.IsZero())
	if byTime { // in the order of the index that the times are found by
		s.order = "e.created DESC, e.id"
	}
	switch {
	case q.After == 0:
	case byTime:
		s.add("(e.created, e.id) < (SELECT created, id FROM escrow_records WHERE id = ?)", q.After)
	default:
		s.add(s.order+" < ?", q.After)
	}
}

// ownerIs is a query for the numbers of an account's keys. Account names are compared as the domain does, without regard to
// the case of a to z.
func ownerIs(owner string) (query string, args []any) {
	const one, several = "SELECT id FROM escrow_records WHERE lower(owner) = ?", "SELECT id FROM escrow_records WHERE lower(owner) >= ? AND lower(owner) < ?"
	name := lower(owner)
	if begin, ok := strings.CutSuffix(name, "*"); ok {
		return several, []any{begin, begin + string(utf8.MaxRune)}
	}
	if strings.Contains(name, "@") {
		return one, []any{name}
	}
	return one + " UNION ALL " + several, []any{name, name + "@", name + "A"} // A follows @
}

// lower is what the databases' lower() does to ASCII letters, the only ones that it changes.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

const (
	maxWords = 32
	maxWord  = 64 // octets
	common   = 1000
)

// words are those of a distinguished name in text form, in lower case, without the names of common attributes.
func words(subject string) []string {
	attributes := []string{"cn", "ou", "o", "dc", "c", "l", "st", "e"}
	var out []string
	for _, w := range strings.FieldsFunc(strings.ToLower(subject), func(r rune) bool { return strings.ContainsRune(` =,+"`, r) }) {
		if len(w) <= maxWord && !slices.Contains(attributes, w) && !slices.Contains(out, w) && len(out) < maxWords {
			out = append(out, w)
		}
	}
	return out
}

// insertWords makes a record findable by the words of its subject.
func insertWords(tx *sql.Tx, id int64, subject string) error {
	list := words(subject)
	if len(list) == 0 {
		return nil
	}
	var args []any
	for _, w := range list {
		args = append(args, w, id)
	}
	_, err := tx.Exec("INSERT INTO escrow_words (word, record) VALUES (?, ?)"+strings.Repeat(", (?, ?)", len(list)-1), args...)
	if err != nil {
		return fmt.Errorf("escrow: words of record %d: %w", id, err)
	}
	return nil
}

// rarestFirst puts the word that the fewest subjects have to the front. Beyond common it does not matter how many they are.
func (e *Escrow) rarestFirst(ctx context.Context, list []string) error {
	if len(list) < 2 {
		return nil
	}
	counts := map[string]int{}
	for _, w := range list {
		var n int
		if err := e.o.DB.SQL.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM escrow_words WHERE word = ? ORDER BY word, record LIMIT ?) w", w, common).Scan(&n); err != nil {
			return fmt.Errorf("escrow: %w", err)
		}
		counts[w] = n
	}
	slices.SortStableFunc(list, func(a, b string) int { return cmp.Compare(counts[a], counts[b]) })
	return nil
}

func (e *Escrow) entries(ctx context.Context, query string, args ...any) ([]Entry, error) {
	rows, err := e.o.DB.SQL.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	defer rows.Close()
	var out []Entry
	for rows.Next() {
		var n Entry
		var created, proven, held, destroyed int64
		var hold, end Note
		var recipients string
		var keyID []byte
		if err := rows.Scan(&n.ID, &created, &n.RequestID, &n.Source, &n.Owner, &n.Subject, &n.Algorithm, &n.Bits, &keyID, &recipients,
			&n.Policy, &n.Required, &n.Format, &proven, &held, &hold.By, &hold.Reason, &destroyed, &end.By, &end.Reason,
			&n.Serial, &n.State, &n.ca, &n.certificate, &n.sealed); err != nil {
			return nil, fmt.Errorf("escrow: %w", err)
		}
		if err := json.Unmarshal([]byte(recipients), &n.Recipients); err != nil {
			return nil, fmt.Errorf("escrow: record %d: %w", n.ID, err)
		}
		n.Created, n.KeyID = time.UnixMilli(created).UTC(), hex.EncodeToString(keyID)
		if proven != 0 {
			n.Proven = time.UnixMilli(proven).UTC()
		}
		n.Held, n.Destroyed = hold.at(held), end.at(destroyed)
		out = append(out, n)
	}
	return out, rows.Err()
}

// at is the note of a time in Unix milliseconds; nil where that is 0.
func (n Note) at(ms int64) *Note {
	if ms == 0 {
		return nil
	}
	n.Time = time.UnixMilli(ms).UTC()
	return &n
}
