package lagmonitor

import _ "embed"

// Example is config.example.yaml: every option with a comment, which is also its description in the schema.
//
//go:embed config.example.yaml
var Example []byte
