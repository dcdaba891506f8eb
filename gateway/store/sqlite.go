package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// Open opens a SQLite file, creates it where it is missing and brings its schema up to date. Other processes may have it open
// at the same time. What is deleted is overwritten with zeros.
func Open(ctx context.Context, path string) (*DB, error) {
	handle, err := openFile(path)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, handle, SQLite); err != nil {
		handle.Close()
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	return start(handle, SQLite), nil
}

func openFile(path string) (*sql.DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	// The file must not be readable for others at any moment: create it before SQLite does.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	defer f.Close()
	address := "file:" + (&url.URL{Path: path}).EscapedPath()
	if info, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	} else if info.Size() == 0 {
		if err := create(address); err != nil {
			return nil, fmt.Errorf("create database %s: %w", path, err)
		}
	}
	options := url.Values{"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "secure_delete(1)", "cache_size(-16000)"}}
	connector, err := newConnector(address + "?" + options.Encode())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	return sql.OpenDB(connector), nil
}

// create writes the file's first page, which fixes the size of all. Of SQLite's own size, 4096 octets, an archived key would fill one, and
// half of it with nothing; with larger ones than 8192 each enrollment writes more, as it changes one of each index.
func create(address string) error {
	handle, err := sql.Open("sqlite", address+"?_pragma=busy_timeout(10000)&_pragma=page_size(8192)")
	if err != nil {
		return err
	}
	_, err = handle.Exec("VACUUM")
	return errors.Join(err, handle.Close())
}
