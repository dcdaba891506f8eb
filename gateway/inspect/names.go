package inspect

import "math/big"

// serialText is the serial number in hexadecimal, as certutil and openssl print it.
func serialText(serial *big.Int) string {
	if serial == nil {
		return ""
	}
	text := serial.Text(16)
	if len(text)%2 == 1 && serial.Sign() >= 0 {
		text = "0" + text
	}
	return text
}
