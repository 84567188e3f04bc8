"""How the page looks, and the little script that sorts its tables. Neither loads anything; without the script the page
reads the same.

Colours are of Okabe and Ito's palette, which stays apart under every kind of colour blindness. No `<` and no `&` in
either text: the page is XML too.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --panel: #ffffff; --text: #1c1f23; --mute: #5b636d; --line: #dfe2e6; --soft: #f1f3f5;
  --int8: #0072b2; --int8-soft: #e3f0f8; --float: #b34a00; --float-soft: #fdeee2; --clip: #b34a00; --bins: #6c8ea3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --panel: #1b1f24; --text: #e6e8ea; --mute: #a2abb5; --line: #333a42; --soft: #22272d;
    --int8: #56b4e9; --int8-soft: #17384b; --float: #f0a04b; --float-soft: #48300f; --clip: #f0a04b; --bins: #7f9fb3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main, header, footer { max-width: 1240px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 22px; margin: 56px 0 4px; padding-top: 16px; border-top: 2px solid var(--text); }
h3 { font-size: 16px; margin: 32px 0 8px; }
p { max-width: 46em; margin: 4px 0 12px; }
.mute, figcaption, footer { color: var(--mute); }
code { font: 0.92em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
nav a { margin-right: 16px; }
a { color: var(--int8); text-underline-offset: 2px; }
a:focus-visible, [role="button"]:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--int8); outline-offset: 2px;
}
footer { font-size: 13px; padding-top: 40px; padding-bottom: 40px; }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 20px; margin: 24px 0;
}
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px; }
.card h2 { border: 0; margin: 0; padding: 0; font-size: 18px; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(106px, 1fr)); gap: 14px 16px; margin: 14px 0 12px;
}
.facts div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { font-size: 13px; color: var(--mute); line-height: 1.3; overflow-wrap: anywhere; }
.facts dd { margin: 0; font-size: 24px; line-height: 1.2; font-weight: 600; font-variant-numeric: tabular-nums; }
.small dd { font-size: 15px; }
.small { padding-top: 12px; border-top: 1px solid var(--line); margin-bottom: 0; }

.scroll {
  overflow: auto; max-height: 80vh; border: 1px solid var(--line); border-radius: 8px; background: var(--panel);
}
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; white-space: nowrap; vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--soft); vertical-align: bottom; font-weight: 600; z-index: 1; }
tbody tr + tr { border-top: 1px solid var(--line); }
tbody tr:hover { background: var(--soft); }
tbody th { font-weight: 400; }
.t, tbody th { text-align: left; }
.w { white-space: normal; min-width: 16em; text-align: left; }
tr.f td.p { color: var(--float); font-weight: 600; }
th [role="button"] { cursor: pointer; border-bottom: 1px dotted var(--mute); }
th[aria-sort="ascending"] [role="button"]::after { content: " \\2191"; }
th[aria-sort="descending"] [role="button"]::after { content: " \\2193"; }
th small { display: block; font-weight: 400; color: var(--mute); }
thead th { white-space: normal; }

figure { margin: 12px 0; }
figcaption { font-size: 13px; max-width: 52em; }
svg { display: block; max-width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--text); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .mid { text-anchor: middle; } svg .end { text-anchor: end; } svg .start { text-anchor: start; }
svg .label, svg .mute { fill: var(--mute); } svg .strong { font-weight: 600; }
.wide { width: 780px; } .plot { width: 460px; } .share { width: 100%; max-height: 12px; }
.axis { stroke: var(--mute); } .grid { stroke: var(--line); }
.int8 { fill: var(--int8); }
.float { fill: var(--float-soft); stroke: var(--float); }
.bins { fill: var(--bins); } .kept { fill: var(--int8-soft); }
.clip { fill: none; stroke: var(--clip); stroke-width: 1.6; }
.front { fill: none; stroke: var(--int8); stroke-width: 1.6; stroke-dasharray: 5 3; }
.best { fill: var(--int8); } .beaten { fill: none; stroke: var(--mute); stroke-width: 1.4; }
.chosen { fill: var(--float); stroke: var(--panel); stroke-width: 1; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 12px 28px; }
.grid-of {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(212px, 1fr)); gap: 14px 18px; margin: 12px 0;
}
.grid-of figure {
  margin: 0; padding: 10px 10px 8px; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  content-visibility: auto; contain-intrinsic-size: 212px 170px;
}
.grid-of figcaption { font-size: 12px; line-height: 1.4; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.grid-of b { color: var(--text); font-weight: 600; display: block; }
.grid-of svg text { font-size: 11px; fill: var(--mute); }
.key {
  display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--mute); list-style: none; padding: 0;
  margin: 4px 0 8px;
}
.key svg { display: inline-block; width: 14px; height: 12px; vertical-align: -1px; margin-right: 6px; }
summary { cursor: pointer; color: var(--int8); margin: 12px 0; }

@media print {
  :root { color-scheme: light; --page: #fff; --panel: #fff; --text: #000; --mute: #444; --line: #bbb; --soft: #f1f3f5;
    --int8: #0072b2; --int8-soft: #e3f0f8; --float: #b34a00; --float-soft: #fdeee2; --clip: #b34a00; --bins: #6c8ea3; }
  body { font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, header, footer { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  table { font-size: 7.5pt; } th, td { padding: 2px 4px; } thead th { position: static; } .w { min-width: 8em; }
  tr, figure, .card { break-inside: avoid; } h2, h3, h3 + p, .key { break-after: avoid; }
  .grid-of figure { content-visibility: visible; }
}
"""

SCRIPT = """
'use strict';
document.querySelectorAll('table.sortable').forEach(function (table) {
  var body = table.tBodies[0];
  var heads = Array.from(table.tHead.rows[0].cells);
  function value(row, i) {
    var text = row.cells[i].textContent.trim();
    var plain = text.replace('\\u2212', '-').replace('\\u221e', 'Infinity');
    var found = parseFloat(plain);
    return { text: text, number: isNaN(found) ? null : found };
  }
  heads.forEach(function (head, i) {
    var button = head.firstChild;
    button.setAttribute('role', 'button');
    button.tabIndex = 0;
    button.addEventListener('keydown', function (event) {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); button.click(); }
    });
    button.addEventListener('click', function () {
      var numeric = !head.classList.contains('t');
      var up = head.getAttribute('aria-sort') ? head.getAttribute('aria-sort') === 'descending' : !numeric || i === 0;
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      var sign = up ? 1 : -1;
      var rows = Array.from(body.rows).map(function (row) { return { row: row, key: value(row, i) }; });
      rows.sort(function (a, b) {
        if (!numeric) { return sign * a.key.text.localeCompare(b.key.text); }
        if (a.key.number === null || b.key.number === null) {
          return (a.key.number === null ? 1 : 0) - (b.key.number === null ? 1 : 0);
        }
        return a.key.number === b.key.number ? 0 : sign * (a.key.number > b.key.number ? 1 : -1);
      });
      rows.forEach(function (entry) { body.appendChild(entry.row); });
    });
  });
});
window.addEventListener('beforeprint', function () {
  document.querySelectorAll('details').forEach(function (each) { each.open = true; });
});
"""
