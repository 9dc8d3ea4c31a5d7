package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
)

// assets are what pages load. Those of uPlot, which draws the six hours, are not ours:
// a test says which version of its npm package they are, and holds them against it.
//
//go:embed assets/*.css assets/*.js assets/*.svg assets/uPlot.LICENSE
var assets embed.FS

// versions holds a part of the hash of each asset: with it in the address, a browser may keep the file for
// ever and still gets the one that fits the page.
var versions = hashes()

// kinds are the types of assets, by the end of their names.
var kinds = map[string]string{
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml", ".LICENSE": "text/plain; charset=utf-8",
}

func hashes() map[string]string {
	out := make(map[string]string)
	files, err := assets.ReadDir("assets")
	if err != nil {
		panic(err) // it is in the binary
	}
	for _, f := range files {
		b, err := assets.ReadFile("assets/" + f.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(b)
		out[f.Name()] = hex.EncodeToString(sum[:6])
	}
	return out
}

// asset is the address of an asset, from the root.
func asset(name string) string { return "assets/" + name + "?v=" + versions[name] }

func addAssets(mux *http.ServeMux) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		b, err := assets.ReadFile("assets/" + name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", kinds[path.Ext(name)])
		w.Header().Set("Cache-Control", "max-age=300")
		if r.URL.Query().Get("v") == versions[name] {
			w.Header().Set("Cache-Control", "max-age=31536000, immutable")
		}
		_, _ = w.Write(b)
	}
	mux.Handle("GET /assets/{name}", zip(serve))
}
