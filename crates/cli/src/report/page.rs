//! The page: one HTML file without scripts and without anything from elsewhere.

use super::data::Data;
use super::sections;
use super::text::{date, escaped};

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1d1f21;--soft:#5c6166;--line:#d9dadb;--card:#fff;--one:#1668a8;\
--weak:#b9d4e8;--two:#b3541e;--three:#3a7d44;--four:#7a5195;--bad:#b00020}\
@media(prefers-color-scheme:dark){:root{--bg:#16181a;--fg:#e6e6e3;--soft:#a3a8ad;--line:#34383c;--card:#1e2124;\
--one:#62b0ec;--weak:#2c4a61;--two:#f0995f;--three:#7fc98a;--four:#c39be0;--bad:#ff8a93}}\
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}\
main{max-width:860px;margin:0 auto;padding:24px 20px 60px}h1{font-size:24px;margin:0 0 4px;overflow-wrap:anywhere}\
h2{font-size:18px;margin:34px 0 6px}p{margin:4px 0 10px}.soft{color:var(--soft)}.bad{color:var(--bad)}\
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:10px;margin:16px 0}\
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}\
.tile b{display:block;font-size:19px;font-weight:600}.tile span{color:var(--soft);font-size:13px}\
figure{margin:10px 0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}\
svg{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere}\
td.text{text-align:left;overflow-wrap:anywhere}.scroll{overflow-x:auto}\
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.tick{fill:var(--soft)}.label{fill:var(--fg)}\
.end{text-anchor:end}.middle{text-anchor:middle}.strong{fill:var(--one)}.weak{fill:var(--weak)}\
.area{fill:var(--weak);opacity:.5}.line{fill:none;stroke-width:2;stroke-linejoin:round}.one{stroke:var(--one)}\
.two{stroke:var(--two)}.three{stroke:var(--three)}.four{stroke:var(--four)}";

/// The whole page.
pub(super) fn page(data: &Data) -> String {
    let store = escaped(&data.store);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/>\n<title>tensorcask: {store}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{store}</h1>\n<p class=\"soft\">tensorcask {}, {} UTC. \
         The store was only read.</p>\n",
        env!("CARGO_PKG_VERSION"),
        date(data.now_s)
    );
    for section in [
        sections::summary(data),
        sections::damage(data),
        sections::growth(data),
        sections::segments(data),
        sections::keys(data),
        sections::values(data),
        sections::reads(data),
    ] {
        out += &section;
    }
    out + "</main>\n</body>\n</html>\n"
}
