"""Style sheet and script of the HTML report; both are written into the page."""

STYLE = """
:root {
  --page: #f6f7f9; --panel: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #dde2e8; --accent: #0b63b0;
  --code: #eef1f4; --warn-ink: #6b4a00; --warn: #fff6dd; --warn-line: #e3b341;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101419; --panel: #181d24; --ink: #e4e8ee; --muted: #98a3b0; --line: #2b323c; --accent: #6cb6ff;
    --code: #222933; --warn-ink: #f2d58b; --warn: #2a2310; --warn-line: #9a7a1f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 66rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.2rem; }
h1 { font-size: 2rem; line-height: 1.25; letter-spacing: -0.015em; margin: 0; }
h2 { font-size: 1.3rem; line-height: 1.3; letter-spacing: -0.01em; margin: 3rem 0 0.6rem; scroll-margin-top: 1rem; }
p { margin: 0.5rem 0 0.9rem; max-width: 46rem; }
.subtitle { color: var(--muted); margin: 0.4rem 0 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.3rem; margin-top: 1rem; font-size: 0.92rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: 0.88em; background: var(--code); padding: 0.1em 0.35em; border-radius: 4px; }
pre {
  background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 0.9rem 1.1rem; overflow-x: auto;
  margin: 0.6rem 0 1.4rem; line-height: 1.7;
}
pre code { background: none; padding: 0; font-size: 0.86rem; }
.code-caption { margin: 1.2rem 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.9rem; margin: 1.5rem 0; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem 1.1rem; }
.label { color: var(--muted); font-size: 0.85rem; overflow-wrap: anywhere; }
.value { font-size: 1.65rem; font-weight: 650; line-height: 1.35; font-variant-numeric: tabular-nums; }
.note { color: var(--muted); font-size: 0.82rem; line-height: 1.45; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 1.5rem; align-items: stretch; }
figure {
  margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 0.9rem;
  flex: 0 1 auto; min-width: 0; max-width: 100%;
}
figcaption { color: var(--muted); font-size: 0.88rem; line-height: 1.5; margin-top: 0.6rem; width: 0; min-width: 100%; }
.zoom { display: block; border: 0; margin: 0; padding: 0; background: none; cursor: zoom-in; max-width: 100%; }
.zoom:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.picture img { image-rendering: pixelated; }
.open {
  position: fixed; inset: 0; z-index: 10; background: rgba(8, 11, 15, 0.93); cursor: zoom-out; padding: 2vmin;
  max-width: none; width: 100vw; height: 100vh; display: flex; align-items: center; justify-content: center;
}
.open img { width: 100%; height: 100%; max-width: none; object-fit: contain; }
.table { overflow-x: auto; margin: 1.2rem 0 1.5rem; }
table { border-collapse: collapse; font-size: 0.92rem; background: var(--panel); min-width: 24rem; }
caption { text-align: left; color: var(--muted); padding-bottom: 0.5rem; font-size: 0.88rem; }
th, td { text-align: left; padding: 0.5rem 1.1rem 0.5rem 0.8rem; border: 1px solid var(--line); border-width: 1px 0; }
th { font-weight: 600; color: var(--muted); font-size: 0.85rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning {
  background: var(--warn); color: var(--warn-ink); border-left: 4px solid var(--warn-line); border-radius: 6px;
  padding: 0.7rem 1.1rem; margin: 1.2rem 0;
}
.warning p { margin: 0.2rem 0; max-width: none; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  .value { font-size: 1.4rem; }
}
@media print { body { background: #fff; } figure, .card, table { break-inside: avoid; } nav { display: none; } }
"""

SCRIPT = """
document.addEventListener("click", (event) => {
  const button = event.target.closest(".zoom");
  const open = document.querySelector(".open");
  if (open) open.classList.remove("open");
  if (button && button !== open) button.classList.add("open");
});
document.addEventListener("keydown", (event) => {
  const open = document.querySelector(".open");
  if (open && event.key === "Escape") open.classList.remove("open");
});
"""
