package manifest

import (
	"fmt"
	"strings"
)

// kinds are what objects are called.
var kinds = map[string]string{"template": "template", "oid": "OID object", "ca": "enrollment service", "container": "container", "root": "trusted root",
	"aia": "intermediate certificate", "ntauth": "logon certificates", "cdp": "revocation list"}

// Unified shows a plan as unified diffs, one per object: what the directory has, and what the file makes of it.
func (p *Plan) Unified() string {
	var b strings.Builder
	for _, d := range p.Differences {
		what := kinds[d.Kind]
		old, new := fmt.Sprintf("directory: %s %s", what, d.Object), fmt.Sprintf("%s: %s %s", d.File, what, d.Name)
		if d.Create {
			old = "directory: nothing"
		}
		if d.Delete {
			new = "nothing"
		}
		fmt.Fprintf(&b, "--- %s\n+++ %s\n", old, new)
		for _, c := range d.Changes {
			fmt.Fprintf(&b, "@@ %s @@\n", c.Key)
			for _, line := range diffLines(c.Old, c.New) {
				b.WriteString(line + "\n")
			}
		}
	}
	return b.String()
}

// diffLines marks the lines of a longest common subsequence with " ", the others with "-" and "+".
func diffLines(old, new []string) (out []string) {
	common := make([][]int, len(old)+1) // lengths for the rests from i and j
	for i := range common {
		common[i] = make([]int, len(new)+1)
	}
	for i := len(old) - 1; i >= 0; i-- {
		for j := len(new) - 1; j >= 0; j-- {
			if common[i][j] = max(common[i+1][j], common[i][j+1]); old[i] == new[j] {
				common[i][j] = common[i+1][j+1] + 1
			}
		}
	}
	i, j := 0, 0
	for i < len(old) || j < len(new) {
		switch {
		case i < len(old) && j < len(new) && old[i] == new[j]:
			out = append(out, " "+old[i])
			i, j = i+1, j+1
		case i < len(old) && (j == len(new) || common[i+1][j] >= common[i][j+1]):
			out = append(out, "-"+old[i])
			i++
		default:
			out = append(out, "+"+new[j])
			j++
		}
	}
	return out
}
