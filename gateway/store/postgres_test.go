package store

import (
	"context"
	"strings"
	"testing"
)

func TestParametersGetNumbers(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT 1":                           "SELECT 1",
		"SELECT ? WHERE a = ?":               "SELECT $1 WHERE a = $2",
		"SELECT '?', \"a?\", 'it''s ?' || ?": "SELECT '?', \"a?\", 'it''s ?' || $1",
	} {
		if got := numbered(query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}

func TestTextIsWhatEveryDatabaseKeeps(t *testing.T) {
	for in, want := range map[string]string{"Jürgen": "Jürgen", "a\x00b": "a\uFFFDb", "a\xffb": "a\uFFFDb"} {
		if got := Text(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A server over the network has to prove who it is before it is told anything.
func TestAServerThatProvesNothingIsNotAsked(t *testing.T) {
	for _, address := range []string{"postgres://u@192.0.2.1/d", "postgres://u@192.0.2.1/d?sslmode=disable", "postgres://u@192.0.2.1/d?sslmode=require",
		"host=192.0.2.1 user=u", "postgres://u@127.0.0.1,192.0.2.1/d?sslmode=prefer"} {
		if _, err := OpenPostgres(context.Background(), address, nil); err == nil || !strings.Contains(err.Error(), "192.0.2.1 is reached over the network without proof") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
