//! `tensorcask report`: the page is parsed strictly, and looked at in a browser if `TENSORCASK_BROWSER` names Chromium.

use std::fs;
use std::path::Path;
use std::process::Command;

use tensorcask::{Options, Store, Value};

use crate::support::{code, names, ok, run, store, store_with, tensor, text};

/// The page of `store`, parsed.
fn page(store: &Path, out: &Path, arguments: &[&str], expected: i32) -> String {
    let output = run(&[&["report", text(store), "-o", text(out), "--seconds", "0.1"], arguments].concat());
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
    fs::read_to_string(out).unwrap()
}

/// Checks that a page is well formed and needs nothing from elsewhere; returns how many plots it has.
fn check(page: &str) -> usize {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(page, options).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "link", "img", "iframe", "object", "image", "use"].contains(&name), "<{name}>");
        for attribute in node.attributes() {
            assert!(!["href", "src", "style"].contains(&attribute.name()), "{attribute:?}");
            assert!(!attribute.value().contains("NaN") && !attribute.value().contains("inf"), "{attribute:?}");
        }
    }
    assert!(!page.contains("url(") && !page.contains("@import") && !page.contains("://www.w3.org/1999"));
    let figures = document.descendants().filter(|node| node.has_tag_name("figure"));
    let mut count = 0;
    for figure in figures {
        count += 1;
        // Every plot has a name, and draws data: bars with an extent, or a line of points.
        let svg = figure.first_element_child().unwrap();
        assert!(svg.attribute("aria-label").is_some_and(|label| !label.is_empty()));
        let number = |node: &roxmltree::Node<'_, '_>, name: &str| node.attribute(name)?.parse::<f64>().ok();
        let is_data = |node: &roxmltree::Node<'_, '_>| match node.tag_name().name() {
            "rect" => number(node, "width") > Some(0.0) && number(node, "height") > Some(0.0),
            "path" => node.attribute("d").is_some_and(|path| path.len() > 20),
            "polyline" => node.attribute("points").is_some_and(|points| points.contains(' ')),
            _ => false,
        };
        assert!(svg.descendants().any(|node| is_data(&node)), "{:?}", svg.attribute("aria-label"));
    }
    count
}

/// A store with everything that the page shows.
fn full() -> (tempfile::TempDir, std::path::PathBuf) {
    let options = Options::new().segment_rows(500).compaction_live_share(0.0);
    store_with(options, |store| {
        for part in 0..8 {
            let keys: Vec<String> =
                (0..500).map(|key| format!("{}/{:04}", ["train", "val"][part % 2], key + part * 100)).collect();
            store.put_rows(&keys, &[64], &vec![part as f32; 500 * 64]).unwrap();
            store.flush().unwrap();
        }
        store.put("<odd> & \"key\"", tensor(&[3, 5], &[1_i16; 15])).unwrap();
        for number in 0..400 {
            let value = Value::from([("<b>", Value::Int(number)), ("t", tensor(&[1], &[1.0_f64]))]);
            store.put(format!("map/{number}"), value).unwrap();
        }
    })
}

#[test]
fn a_page_has_all_plots_and_stands_alone() {
    let (dir, store) = full();
    let out = dir.path().join("page.html");
    let before = names(&store.join("segments"));
    let said = page(&store, &out, &[], 0);
    assert_eq!(check(&said), 8, "growth, sizes, live share, key lengths, prefixes, structures, value sizes, latency");
    for words in ["F32[64]", "{&lt;b&gt;: int, t: F64[1]}", "train/", "µs a batch", "live rows of a segment (%)", "MiB"]
    {
        assert!(said.contains(words), "{words}");
    }
    assert!(!said.contains("<odd>") && !said.contains("<b>:"));
    assert_eq!(names(&store.join("segments")), before);
    // An existing page is replaced, and a test of reads can be left out.
    let json: serde_json::Value =
        serde_json::from_str(&ok(&["report", text(&store), "-o", text(&out), "--seconds", "0", "--format", "json"]))
            .unwrap();
    assert_eq!((json["replaced"].as_bool(), json["damaged"].as_bool()), (Some(true), Some(false)));
    assert_eq!(check(&fs::read_to_string(&out).unwrap()), 7);
    let (found, message) = code(&["report", text(&store), "-o", text(&store.join("page.html"))]);
    assert_eq!((found, store.join("page.html").exists()), (3, false), "{message}");
    assert_eq!(code(&["report", text(&store), "-o", text(&out), "--seconds", "-1"]).0, 3);
}

#[test]
fn stores_of_integers_and_of_nothing_have_pages() {
    let (dir, empty) = store(|_| {});
    let said = page(&empty, &dir.path().join("page.html"), &[], 0);
    assert_eq!(check(&said), 0);
    assert!(said.contains("There are no rows.") && said.contains("no kind yet"));
    let (dir, integers) = store(|store| {
        let keys: Vec<u64> = (0..1000).map(|key| key * key).collect();
        store.put_rows(&keys, &[1], &vec![1_u8; 1000]).unwrap();
    });
    let said = page(&integers, &dir.path().join("page.html"), &[], 0);
    assert_eq!(check(&said), 7);
    assert!(said.contains("key (integer)"));
    // The rows of a writer that still runs are in its active segment.
    let live = Store::open(dir.path(), "live").unwrap();
    live.put_rows(&[1_u64, 2], &[2], &[1.0_f32; 4]).unwrap();
    live.flush().unwrap();
    assert_eq!(check(&page(&dir.path().join("live"), &dir.path().join("page.html"), &[], 0)), 7);
}

#[test]
fn a_page_of_a_damaged_store_says_so() {
    let (dir, store) = full();
    fs::remove_file(store.join("segments/0000-0000000002.arrow")).unwrap();
    let mut bytes = fs::read(store.join("segments/0000-0000000004.arrow")).unwrap();
    bytes.truncate(200);
    fs::write(store.join("segments/0000-0000000004.arrow"), bytes).unwrap();
    let said = page(&store, &dir.path().join("page.html"), &[], 2);
    assert!(check(&said) >= 7);
    assert!(said.contains("2 files are left out or missing") && said.contains("0000-0000000002.arrow"), "{said}");
    assert!(!said.contains("None was found"));
}

/// A picture of a page: width, height, and its pixels.
fn picture(browser: &str, dir: &Path, page: &Path, arguments: &[&str]) -> (u32, u32, Vec<[u8; 3]>) {
    let file = dir.join("page.png");
    let _ = fs::remove_file(&file);
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,3200"])
        .arg(format!("--user-data-dir={}", dir.join("profile").display()))
        .args(arguments)
        .arg(format!("--screenshot={}", file.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    assert!(file.exists(), "{output:?}");
    let mut reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(&file).unwrap())).read_info().unwrap();
    let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut buffer).unwrap();
    let samples = frame.color_type.samples();
    let pixels = buffer[..frame.buffer_size()].chunks_exact(samples).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    (frame.width, frame.height, pixels.collect())
}

#[test]
fn a_browser_draws_the_page() {
    let Ok(browser) = std::env::var("TENSORCASK_BROWSER") else {
        println!("\n*** TENSORCASK_BROWSER is not set: the page was NOT looked at in a browser ***\n");
        return;
    };
    let (dir, store) = full();
    let out = dir.path().join("page.html");
    page(&store, &out, &[], 0);
    for (arguments, background, blue) in [
        (&[][..], [0xfb, 0xfb, 0xf9], [0x16, 0x68, 0xa8]),
        (&["--blink-settings=preferredColorScheme=0"], [0x16, 0x18, 0x1a], [0x62, 0xb0, 0xec]),
    ] {
        let (width, height, pixels) = picture(&browser, dir.path(), &out, arguments);
        assert_eq!((width, pixels.len()), (900, (width * height) as usize));
        let count = |colour: [u8; 3]| pixels.iter().filter(|pixel| **pixel == colour).count();
        // Bars, lines and the page itself are there, and the page is neither blank nor one colour.
        assert!(count(blue) > 20_000, "{}", count(blue));
        assert!(count(background) > pixels.len() / 10, "{}", count(background));
        let mut colours = pixels.clone();
        colours.sort_unstable();
        colours.dedup();
        assert!(colours.len() > 50, "{}", colours.len());
        // Each part of the page has something on it, from the title to the table of the read test.
        let rows: Vec<bool> =
            pixels.chunks(width as usize).map(|row| row.iter().any(|pixel| *pixel != background)).collect();
        let end = rows.iter().rposition(|drawn| *drawn).unwrap();
        assert!(end > 2000 && end < rows.len() - 20, "{end} of {}", rows.len());
        let drawn = |part: &[bool]| part.iter().any(|drawn| *drawn);
        assert!(rows[..end].chunks(120).all(drawn));
    }
}
