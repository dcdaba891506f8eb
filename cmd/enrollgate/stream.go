package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
)

// stream prints a list of any length while it is found, in a table or as one JSON object, and a summary after it.
type stream struct {
	json  bool
	out   *bufio.Writer
	table *tabwriter.Writer
	name  string
	heads []any
	rows  int64
}

// rowsAtOnce is after how many rows a table is printed: columns are as wide as these need.
const rowsAtOnce = 500

// stream begins a list; name is the list's in the JSON object.
func (a *app) stream(name string, heads ...any) *stream {
	out := bufio.NewWriter(os.Stdout)
	return &stream{json: a.output == "json", out: out, table: tabwriter.NewWriter(out, 0, 4, 2, ' ', 0), name: name, heads: heads}
}

// row adds a value, of which a table shows the cells.
func (s *stream) row(value any, cells ...any) error {
	s.rows++
	if !s.json {
		if s.rows == 1 {
			row(s.table, s.heads...)
		}
		row(s.table, cells...)
		if s.rows%rowsAtOnce == 0 {
			return s.table.Flush()
		}
		return nil
	}
	separator := ","
	if s.rows == 1 {
		separator = fmt.Sprintf("{%q: [", s.name)
	}
	text, err := json.Marshal(value)
	if err == nil {
		_, err = fmt.Fprintf(s.out, "%s\n  %s", separator, text)
	}
	return err
}

// end prints the summary; name is its in the JSON object.
func (s *stream) end(name string, summary any, show func(w *tabwriter.Writer)) error {
	if !s.json {
		show(s.table)
		return s.flush()
	}
	text, err := json.MarshalIndent(summary, "", "  ")
	if err != nil {
		return err
	}
	if s.rows == 0 {
		fmt.Fprintf(s.out, "{%q: [", s.name)
	}
	fmt.Fprintf(s.out, "\n], %q: %s}\n", name, text)
	return s.flush()
}

// flush prints what there is: the end of a list that is not complete.
func (s *stream) flush() error { return errors.Join(s.table.Flush(), s.out.Flush()) }
