//! Key files, and rows without keys.

use tensorcask::Key;

use super::{Place, header, npy, path_text as text, rows3};
use crate::support::{code, ok};

fn strs(keys: &[&str]) -> Vec<Key> {
    keys.iter().map(|key| Key::Str((*key).into())).collect()
}

#[test]
fn keys_of_every_kind() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let keys = place.file("keys.txt", "00ff\n0a0b\n0x\n");
    let store = place.store("bytes");
    ok(&["import", text(&store), text(&array), "--keys", text(&keys), "--key-kind", "bytes"]);
    assert_eq!(ok(&["ls", text(&store), "--prefix", "0a"]), "0a0b\n");
    assert_eq!(ok(&["get", text(&store), "0x00ff", "--head", "1"]), "F32 [2] [0.0, …]\n");
    assert!(place.get("bytes", &b""[..]).is_some());
    let numbers = place.store("numbers");
    ok(&["import", text(&numbers), text(&array)]);
    assert_eq!(
        ok(&["ls", text(&numbers), "--from", "0", "--to", "9", "--format", "json"]),
        "{\"key\":0}\n{\"key\":1}\n{\"key\":2}\n"
    );
    let out = place.path("one.npy");
    ok(&["get", text(&numbers), "1", "--npy", text(&out)]);
    assert_eq!(std::fs::read(&out).unwrap().len() % 64, 8);
    std::fs::write(&keys, "00ff\n").unwrap();
    let message = place.refused(&[text(&array), "--keys", text(&keys)]);
    assert!(message.contains("expected 3 keys") && message.contains("found 1"), "{message}");
}

/// Each key file gives the expected keys, or is refused with its name and line, and nothing is stored.
#[test]
fn files_of_keys() {
    let long = "k".repeat(70_000);
    let longer = "k".repeat(200_000);
    let taken: &[(&str, &[u8], &[&str])] = &[
        ("plain", b"a\nb\nc\n", &["a", "b", "c"]),
        ("no last newline", b"a\nb\nc", &["a", "b", "c"]),
        ("crlf", b"a\r\nb\r\nc\r\n", &["a", "b", "c"]),
        ("mixed ends", b"a\r\nb\nc\r\n", &["a", "b", "c"]),
        ("bom", b"\xef\xbb\xbfa\nb\nc\n", &["a", "b", "c"]),
        ("bom and crlf", b"\xef\xbb\xbfa\r\nb\r\nc", &["a", "b", "c"]),
        ("a second bom", b"\xef\xbb\xbf\xef\xbb\xbfa\nb\nc\n", &["b", "c", "\u{feff}a"]),
        ("blank last", b"a\nb\nc\n\n\r\n\n", &["a", "b", "c"]),
        ("spaces", b" a\nb \n\tc \n", &["\tc ", " a", "b "]),
        ("leading zeros", b"007\n7\n0007\n", &["0007", "007", "7"]),
        ("json lines", b"\"a\"\n\"b\"\n\"c\"\n", &["\"a\"", "\"b\"", "\"c\""]),
        ("two forms of one letter", "\u{e9}\ne\u{301}\nx\n".as_bytes(), &["e\u{301}", "x", "\u{e9}"]),
    ];
    let refused: &[(&str, &[u8], &str)] = &[
        ("utf-16", b"\xff\xfea\0\n\0b\0\n\0c\0\n\0", "UTF-16"),
        ("utf-16 big-endian", b"\xfe\xff\0a\0\n\0b\0\n\0c\0\n", "UTF-16"),
        ("utf-16 without bom", b"a\0\n\0b\0\n\0c\0\n\0", "line 1: it has a NUL"),
        ("blank middle", b"a\n\nc\n", "line 2: it is empty"),
        ("blank first", b"\nb\nc\n", "line 1: it is empty"),
        ("two", b"a\nb\n", "expected 3 keys for the 3 rows"),
        ("four", b"a\nb\nc\nd\n", "found 4"),
        ("heading", b"id\na\nb\nc\n", "\"id\" in line 1 a heading"),
        ("empty", b"", "found 0"),
        ("latin-1", b"a\n\xe9\nc\n", "line 2: its byte 1 is 0xe9"),
        ("latin-1 at the end", b"a\nb\nc\xe9", "line 3: its byte 2 is 0xe9"),
        ("cr only", b"a\rb\rc\r", "line 1: it has a carriage return"),
        ("ends in cr", b"a\nb\r\r\nc\n", "line 2: it has a carriage return"),
        ("nul", b"a\nb\nc\0d\n", "line 3: it has a NUL"),
        ("long", long.as_bytes(), "line 1: the key is 70000 bytes long"),
        ("longer", longer.as_bytes(), "line 1: it is longer than a key can be"),
        ("gzip", b"\x1f\x8b\x08\0\0", "is compressed"),
    ];
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    for (at, (name, bytes, expected)) in taken.iter().enumerate() {
        let keys = place.file("keys.txt", bytes);
        let store = format!("s{at}");
        place.import(&store, &[text(&array), "--keys", text(&keys)]);
        assert_eq!(place.keys(&store), strs(expected), "{name}");
    }
    for (name, bytes, what) in refused {
        let keys = place.file("keys.txt", bytes);
        let message = place.refused(&[text(&array), "--keys", text(&keys)]);
        assert!(message.contains(what) && message.contains("keys.txt"), "{name}: {message}");
    }
}

#[test]
fn integer_keys_have_one_accepted_spelling() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let import = |lines: &str| {
        let keys = place.file("keys.txt", lines);
        place.refused(&[text(&array), "--keys", text(&keys), "--key-kind", "u64"])
    };
    for bad in ["007", "+7", " 7", "7 ", "-1", "7.0", "0x7", "18446744073709551616", "1_0", "\u{667}"] {
        let message = import(&format!("0\n{bad}\n9\n"));
        assert!(message.contains("keys.txt: line 2") && message.contains("unsigned integers"), "{bad}: {message}");
    }
    let keys = place.file("keys.txt", "18446744073709551615\r\n0\r\n7");
    place.import("u64", &[text(&array), "--keys", text(&keys), "--key-kind", "u64"]);
    assert_eq!(place.keys("u64"), [Key::U64(0), Key::U64(7), Key::U64(u64::MAX)]);
    for bad in ["007", "+7", " 7"] {
        assert_eq!(code(&["get", text(&place.store("u64")), bad]).0, 3, "{bad}");
        assert_eq!(code(&["ls", text(&place.store("u64")), "--from", bad, "--to", "9"]).0, 3, "{bad}");
    }
    assert_eq!(code(&["get", text(&place.store("u64")), "7"]).0, 0);
}

#[test]
fn arrays_of_keys() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let mut names = 0;
    let mut keys_of = |descr: &str, data: &[u8], kind: &[&str]| {
        let ids = place.file("ids.npy", npy(&header(descr, false, &[3]), data));
        names += 1;
        let store = format!("s{names}");
        place.import(&store, &[&[text(&array), "--keys", text(&ids)], kind].concat());
        place.keys(&store)
    };
    let numbers = [Key::U64(10), Key::U64(20), Key::U64(30)];
    let le: Vec<u8> = [30_i64, 10, 20].iter().flat_map(|n| n.to_le_bytes()).collect();
    let be: Vec<u8> = [30_u32, 10, 20].iter().flat_map(|n| n.to_be_bytes()).collect();
    assert_eq!(keys_of("<i8", &le, &[]), numbers);
    assert_eq!(keys_of(">u4", &be, &[]), numbers);
    assert_eq!(keys_of("|u1", &[30, 10, 20], &[]), numbers);
    assert_eq!(keys_of("<i8", &le, &["--key-kind", "str"]), strs(&["10", "20", "30"]));
    let ucs4 = |big: bool| -> Vec<u8> {
        let codes = "a\0éx\u{1f600}\0".chars().map(u32::from);
        codes.flat_map(|code| if big { code.to_be_bytes() } else { code.to_le_bytes() }).collect()
    };
    assert_eq!(keys_of("<U2", &ucs4(false), &[]), strs(&["a", "éx", "\u{1f600}"]));
    assert_eq!(keys_of(">U2", &ucs4(true), &[]), strs(&["a", "éx", "\u{1f600}"]));
    assert_eq!(keys_of("|S2", b"a\0bcd\0", &[]), strs(&["a", "bc", "d"]));
    let bytes = [vec![0xff], vec![1, 0xfe], vec![3, 2]];
    let found = keys_of("|S2", b"\xff\0\x03\x02\x01\xfe", &["--key-kind", "bytes"]);
    assert_eq!(found, [bytes[1].clone(), bytes[2].clone(), bytes[0].clone()].map(Key::Bytes));
    assert_eq!(keys_of("|S2", b"7\x00108\0", &["--key-kind", "u64"]), [Key::U64(7), Key::U64(8), Key::U64(10)]);

    let negative: Vec<u8> = [30_i64, -1, 20].iter().flat_map(|n| n.to_le_bytes()).collect();
    let refused = [
        (header("<i8", false, &[3]), &negative[..], "element 1: -1 cannot be a key"),
        (header("<f8", false, &[3]), &negative[..], "integers or strings"),
        (header("<i8", false, &[3, 1]), &negative[..], "one dimension"),
        (header("<i8", false, &[2]), &negative[..16], "element 1"),
        (header("|u1", false, &[2]), &[1, 2], "expected 3 keys"),
        (header("|S1", false, &[3]), b"a\xe9c", "element 1: its bytes are not UTF-8"),
        (header("<U1", false, &[3]), &[0, 0xd8, 0, 0].repeat(3), "not a character"),
        (header("|O", false, &[3]), &[], "Python objects"),
    ];
    for (header, data, what) in refused {
        let ids = place.file("ids.npy", npy(&header, data));
        let message = place.refused(&[text(&array), "--keys", text(&ids)]);
        assert!(message.contains(what) && message.contains("ids.npy"), "{header}: {message}");
    }
}

#[test]
fn row_numbers_replace_keys_only_with_overwrite() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let other = place.file("other.npy", npy(&header("<f4", false, &[3, 2]), &[0x40; 24]));
    let store = place.store("m");
    place.import("m", &[text(&array)]);
    let before = place.tensor("m", 1);
    for arguments in [&[][..], &["--first-key", "0"], &["--first-key", "2"]] {
        let (found, message) = code(&[&["import", text(&store), text(&other)], arguments].concat());
        assert_eq!(found, 3, "{message}");
        for option in ["--first-key", "--key-prefix", "--overwrite"] {
            assert!(message.contains(option), "{message}");
        }
        assert_eq!((place.tensor("m", 1), place.keys("m").len()), (before.clone(), 3));
    }
    let said = place.import("m", &[text(&other), "--first-key", "3"]);
    assert_eq!((&said["new"], &said["replaced"]), (&3.into(), &0.into()));
    let said = place.import("m", &[text(&other), "--first-key", "1", "--overwrite"]);
    assert_eq!((&said["new"], &said["replaced"]), (&0.into(), &3.into()));
    let said = place.import("m", &[text(&other), "--first-key", "5", "--overwrite"]);
    assert_eq!((&said["new"], &said["replaced"]), (&2.into(), &1.into()));
    assert_ne!(place.tensor("m", 1), before);
    assert_eq!(place.keys("m").len(), 8);
    assert!(place.refused(&[text(&array), "--first-key", "18446744073709551614"]).contains("--first-key"));

    place.import("p", &[text(&array), "--key-prefix", "train/"]);
    place.import("p", &[text(&other), "--key-prefix", "train/", "--first-key", "3"]);
    let expected: Vec<String> = (0..6).map(|i| format!("train/{i}")).collect();
    assert_eq!(place.keys("p"), strs(&expected.iter().map(String::as_str).collect::<Vec<_>>()));
    let (found, message) = code(&["import", text(&place.store("p")), text(&other), "--key-prefix", "train/"]);
    assert!(found == 3 && message.contains("train/0"), "{message}");
    // Row numbers do not fit a store with text keys.
    let (found, message) = code(&["import", text(&place.store("p")), text(&other)]);
    assert!(found == 3 && message.contains("--key-prefix"), "{message}");
    let (found, message) = code(&["import", text(&store), text(&other), "--key-prefix", "x"]);
    assert!(found == 3 && message.contains("--key-prefix"), "{message}");
}

#[test]
fn replaced_keys_are_counted() {
    let place = Place::new();
    let array = place.file("in.npy", rows3());
    let keys = place.file("keys.txt", "a\nb\na\n");
    let said = place.import("m", &[text(&array), "--keys", text(&keys)]);
    let counts = |said: &serde_json::Value| {
        ["values", "distinct_keys", "duplicates", "new", "replaced"].map(|name| said[name].as_u64().unwrap())
    };
    assert_eq!(counts(&said), [3, 2, 1, 2, 0]);
    assert_eq!(place.tensor("m", "a").to_vec::<f32>().unwrap(), [4.0, 5.0]);
    let keys = place.file("keys.txt", "b\nc\nc\n");
    assert_eq!(counts(&place.import("m", &[text(&array), "--keys", text(&keys)])), [3, 2, 1, 1, 1]);
    let said = ok(&["import", text(&place.store("m")), text(&array), "--keys", text(&keys)]);
    assert!(said.contains("2 distinct keys, 1 duplicates: 0 new, 2 replaced"), "{said}");
    // Text keys for a store with number keys, and the reverse.
    let numbers = place.file("numbers.txt", "1\n2\n3\n");
    let (found, message) =
        code(&["import", text(&place.store("m")), text(&array), "--keys", text(&numbers), "--key-kind", "u64"]);
    assert!(found == 3 && message.contains("--key-kind"), "{message}");
}

#[test]
fn many_keys_are_counted() {
    let place = Place::new();
    let rows = 50_000_u32;
    let array = place.file(
        "in.npy",
        npy(&header("<u4", false, &[rows as usize]), &(0..rows).flat_map(u32::to_le_bytes).collect::<Vec<_>>()),
    );
    let lines: String = (0..rows).map(|i| format!("key/{}\n", i % 40_000)).collect();
    let keys = place.file("keys.txt", lines);
    let said = place.import("m", &[text(&array), "--keys", text(&keys)]);
    assert_eq!((&said["distinct_keys"], &said["duplicates"]), (&40_000.into(), &10_000.into()));
    assert_eq!((&said["new"], &said["replaced"]), (&40_000.into(), &0.into()));
    assert_eq!(place.tensor("m", "key/7").to_vec::<u32>().unwrap(), [40_007]);
    assert_eq!(place.tensor("m", "key/39999").to_vec::<u32>().unwrap(), [39_999]);
}
