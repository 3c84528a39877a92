"""How the lesson's page looks: on screens light and dark, on a phone, and on A4."""

from __future__ import annotations

STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --paper: #fff; --line: #d5dae0; --shade: #f4f6f8; --link: #00568a; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a4acb6; --paper: #15181c; --line: #3a4149; --shade: #1f242a; --link: #7cc4f5; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; color-scheme: light dark; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 58rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: .5rem 0 .75rem; font-size: 2rem; line-height: 1.2; }
h2 { margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.4rem; }
p, li, figcaption { max-width: 44rem; }
a { color: var(--link); }
nav ol { margin: .5rem 0 0; padding-left: 1.5rem; }
.note { max-width: none; margin: 1rem 0; padding: .75rem 1rem; border: 2px solid #d55e00; border-left-width: .6rem;
  background: #fff1e6; color: #5c2800; font-weight: 700; }
.findings li { margin: .4rem 0; }
.scroll { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; color: var(--soft); }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tbody th { min-width: 11rem; background: var(--paper); text-align: left; white-space: normal; }
thead th:first-child { text-align: left; }
tr.baseline > * { background: var(--shade); }
small { display: block; color: var(--soft); font-size: .85em; font-weight: 400; line-height: 1.35; }
small.lost { color: #d55e00; font-weight: 700; }
.error { display: inline-block; min-width: 3.6em; padding-left: .3em; text-align: left; color: var(--soft); }
.star { display: inline-block; width: 0; }
figure { margin: 1.75rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .94rem; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { padding: .75rem 1rem; overflow-x: auto; background: var(--shade); }
dt { margin-top: .75rem; font-weight: 700; }
dd { margin: 0; max-width: 44rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  h1 { font-size: 1.6rem; }
  th, td { padding: .4rem .45rem; }
  tbody th { min-width: 7.5rem; max-width: 8.5rem; border-right: 1px solid var(--line); }
  th:first-child { position: sticky; left: 0; background: var(--paper); }
  tr.baseline > th { background: var(--shade); }
}
@media print {
  @page { size: A4; margin: 16mm 15mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  h2 { margin-top: 1.5rem; }
  h2, h2 + p, caption, thead { break-after: avoid; }
  table { font-size: 9pt; }
  table, tr, figure, .note, dl > * { break-inside: avoid; }
  figure img { max-height: 95mm; width: auto; }
  th, td { padding: .3rem .35rem; }
  tbody th { min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
