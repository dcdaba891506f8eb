package soap

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"strconv"
)

// writer builds XML from fixed names and escaped values.
type writer struct{ bytes.Buffer }

// open starts an element; tag may hold fixed attributes.
func (w *writer) open(tag string) {
	w.WriteByte('<')
	w.WriteString(tag)
	w.WriteByte('>')
}

// close ends an element.
func (w *writer) close(name string) {
	w.WriteString("</")
	w.WriteString(name)
	w.WriteByte('>')
}

// escape writes character data or an attribute's value. Characters that XML cannot carry become U+FFFD.
func (w *writer) escape(s string) {
	_ = xml.EscapeText(&w.Buffer, []byte(s)) // a bytes.Buffer does not fail
}

func (w *writer) text(name, value string) {
	w.open(name)
	w.escape(value)
	w.close(name)
}

// null writes a nillable element without a value, which must not be left out ([MS-XCEP] 6).
func (w *writer) null(name string) {
	w.WriteByte('<')
	w.WriteString(name)
	w.WriteString(` xsi:nil="true"/>`)
}

// textOrNil writes xsi:nil in the place of "".
func (w *writer) textOrNil(name, value string) {
	if value == "" {
		w.null(name)
		return
	}
	w.text(name, value)
}

func (w *writer) number(name string, n uint64) { w.text(name, strconv.FormatUint(n, 10)) }

func (w *writer) numberOrNil(name string, n *uint32) {
	if n == nil {
		w.null(name)
		return
	}
	w.number(name, uint64(*n))
}

func (w *writer) bool(name string, v bool) { w.text(name, strconv.FormatBool(v)) }

// base64 writes octets on one line: one client fails on lines of 76 columns.
func (w *writer) base64(b []byte) {
	w.Write(base64.StdEncoding.AppendEncode(w.AvailableBuffer(), b))
}

func (w *writer) octets(name string, b []byte) {
	w.open(name)
	w.base64(b)
	w.close(name)
}
