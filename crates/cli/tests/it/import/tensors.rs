//! `.safetensors` files.

use tensorcask::{Dtype, Key};

use super::{Place, floats, path_text as text, safetensors};
use crate::support::ok;

fn one(dtype: &str, shape: &str, len_bytes: usize) -> String {
    format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{len_bytes}]}}}}"#)
}

#[test]
fn every_dtype_is_imported_bit_for_bit() {
    let place = Place::new();
    for &dtype in Dtype::ALL {
        let len_bytes = dtype.tensor_len_bytes(&[4, 4]).unwrap();
        let data: Vec<u8> =
            (0..len_bytes).map(|i| if dtype == Dtype::Bool { i as u8 % 2 } else { (i * 37) as u8 }).collect();
        let file = place.file("in.safetensors", safetensors(&one(dtype.name(), "[4,4]", len_bytes), &data));
        place.import(dtype.name(), &[text(&file)]);
        let tensor = place.tensor(dtype.name(), "t");
        assert_eq!((tensor.dtype(), tensor.shape(), &tensor.data()[..]), (dtype, &[4, 4][..], &data[..]));
    }
}

#[test]
fn names_become_keys_unchanged() {
    let place = Place::new();
    let names = ["", "a b", "a\nb", "a\tb", "\u{e9}", "e\u{301}", "007", "../x", "a/b", "nul\0x", "\u{1f600}", "-n"];
    let mut header = serde_json::Map::new();
    for (at, name) in names.iter().enumerate() {
        let tensor = serde_json::json!({ "dtype": "U8", "shape": [], "data_offsets": [at, at + 1] });
        header.insert((*name).to_owned(), tensor);
    }
    let data: Vec<u8> = (0..names.len() as u8).collect();
    let file = place.file("in.safetensors", safetensors(&serde_json::Value::Object(header).to_string(), &data));
    place.import("m", &[text(&file)]);
    assert_eq!(place.keys("m").len(), names.len());
    for (at, name) in names.iter().enumerate() {
        assert_eq!(place.tensor("m", *name).data()[..], [at as u8], "{name:?}");
    }
    place.import("p", &[text(&file), "--key-prefix", "layer/"]);
    assert_eq!(place.tensor("p", "layer/007").data()[..], [6]);
    let long = "k".repeat(65_537);
    let file =
        place.file("in.safetensors", safetensors(&one("U8", "[1]", 1).replace("\"t\"", &format!("\"{long}\"")), &[0]));
    assert!(place.refused(&[text(&file)]).contains("65537 bytes"));
}

#[test]
fn files_that_are_refused() {
    let place = Place::new();
    let pair = |b: &str, len: usize| {
        let header = format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{b}}}}}"#
        );
        safetensors(&header, &vec![0; len])
    };
    let t = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (pair("[0,4]", 4), "overlap"),
        (pair("[2,6]", 6), "overlap"),
        (pair("[8,12]", 12), "gap"),
        (pair("[4,8]", 9), "1 bytes follow"),
        (pair("[4,8]", 7), "it is truncated"),
        (pair("[8,4]", 8), "from 8 to 4"),
        (safetensors(&one("F32", "[2]", 4), &[0; 4]), "takes 8 bytes"),
        (safetensors(&one("F4", "[3]", 2), &[0; 2]), "whole bytes"),
        (safetensors(&one("F32", "[1099511627776,1099511627776]", 4), &[0; 4]), "too large"),
        (safetensors(&one("I4", "[2]", 1), &[0]), "\"I4\" is not supported"),
        (safetensors(&one("BOOL", "[4]", 4), &[0, 1, 2, 0]), "boolean 2 has the byte 2"),
        (safetensors(&format!(r#"{{"t":{t},"t":{t}}}"#), &[0; 4]), "\"t\" occurs twice"),
        (safetensors(&format!(r#"{{"__metadata__":{{"a":1}},"t":{t}}}"#), &[0; 4]), "header cannot be read"),
        (safetensors(&format!(r#"{{"t":{t}"#), &[0; 4]), "header cannot be read"),
        (safetensors(&format!(r#" {{"t":{t}}}"#), &[0; 4]), "start with"),
        (safetensors(&format!(r#"{{"t":{t}}} x"#), &[0; 4]), "header cannot be read"),
        (safetensors("[]", &[]), "start with"),
        ([&(1_u64 << 62).to_le_bytes()[..], b"{}"].concat(), "claims 4611686018427387904 bytes"),
        ([&100_u64.to_le_bytes()[..], b"{}"].concat(), "claims 100 bytes"),
        (Vec::new(), "is empty"),
        (b"{}".to_vec(), "not a .safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 132\n".to_vec(), "git lfs pull"),
        (b"<!DOCTYPE html><html><body>404</body></html>".to_vec(), "HTML page"),
        (b"<?xml version=\"1.0\"?><Error>AccessDenied".to_vec(), "XML"),
        (b"PK\x03\x04 and more of it".to_vec(), "zip archive"),
    ];
    for (bytes, what) in cases {
        let file = place.file("in.safetensors", &bytes);
        let message = place.refused(&[text(&file)]);
        assert!(message.contains(what) && message.contains("in.safetensors"), "expected {what:?}: {message}");
    }
    // Rows of sub-byte elements that do not fill whole bytes.
    let file = place.file("in.safetensors", safetensors(&one("F4", "[2,3]", 3), &[1, 2, 3]));
    assert!(place.refused(&[text(&file), "--tensor", "t"]).contains("whole bytes"));
    place.import("whole", &[text(&file)]);
    let message = place.refused(&[text(&file), "--tensor", "x"]);
    assert!(message.contains("\"x\"") && message.contains("there are t"), "{message}");
}

#[test]
fn metadata_is_kept_and_exported() {
    let place = Place::new();
    let file = |metadata: &str| {
        let header = format!(r#"{{"__metadata__":{metadata},"t":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        place.file("in.safetensors", safetensors(&header, &floats(&[1.0])))
    };
    let stats = || -> serde_json::Value {
        serde_json::from_str(&ok(&["stats", text(&place.store("m")), "--format", "json"])).unwrap()
    };
    for none in ["null", "{}"] {
        place.import("m", &[text(&file(none))]);
        assert_eq!(stats()["metadata"], serde_json::json!({}));
    }
    place.import("m", &[text(&file(r#"{"model":"minilm","layer":"3\n"}"#))]);
    assert_eq!(stats()["metadata"], serde_json::json!({ "model": "minilm", "layer": "3\n" }));
    assert!(ok(&["stats", text(&place.store("m"))]).contains(r#""model" is "minilm""#));
    let said = place.import("m", &[text(&file(r#"{"model":"bge","dim":"1"}"#))]);
    assert!(said["warnings"].to_string().contains("minilm"), "{said}");
    let expected = serde_json::json!({ "model": "bge", "layer": "3\n", "dim": "1" });
    assert_eq!(stats()["metadata"], expected);
    // Importing the rows of one tensor keeps the metadata too.
    place.import("rows", &[text(&file(r#"{"a":"b"}"#)), "--tensor", "t"]);
    assert!(ok(&["stats", text(&place.store("rows"))]).contains(r#""a" is "b""#));

    let out = place.path("out.safetensors");
    ok(&["export", text(&place.store("m")), text(&out)]);
    let bytes = std::fs::read(&out).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(serde_json::to_value(header.metadata().as_ref().unwrap()).unwrap(), expected);
    assert!(std::fs::read_dir(place.store("m")).unwrap().all(|entry| !text(&entry.unwrap().path()).ends_with(".tmp")));
    // A refused import changes nothing.
    let bad = place.file("bad.safetensors", [std::fs::read(file(r#"{"model":"x"}"#)).unwrap(), vec![0]].concat());
    assert_eq!(crate::support::code(&["import", text(&place.store("m")), text(&bad)]).0, 3);
    assert_eq!(stats()["metadata"], expected);
    // The same if the metadata of the store cannot be read.
    std::fs::write(place.store("m").join("metadata.json"), "{").unwrap();
    let (found, message) = crate::support::code(&["import", text(&place.store("m")), text(&file("{}"))]);
    assert!(found == 3 && message.contains("metadata.json"), "{message}");
}

#[test]
fn several_files_are_one_input() {
    let place = Place::new();
    let shard = |name: &str, tensor: &str| {
        place.file(name, safetensors(&one("F32", "[1]", 4).replace("\"t\"", &format!("\"{tensor}\"")), &floats(&[2.0])))
    };
    shard("model/model-00001-of-00002.safetensors", "a");
    shard("model/model-00002-of-00002.safetensors", "b");
    place.file("model/model.safetensors.index.json", "{}");
    place.file("model/.hidden.safetensors", "x");
    let said = place.import("m", &[text(&place.path("model"))]);
    assert_eq!((&said["files"], &said["values"]), (&2.into(), &2.into()));
    assert_eq!(said["left_out"].as_array().unwrap().len(), 2);
    assert_eq!(place.keys("m"), [Key::Str("a".into()), Key::Str("b".into())]);
    // If one file is wrong, nothing of the others is stored.
    place.file("model/model-00003-of-00003.safetensors", "x");
    place.refused(&[text(&place.path("model"))]);
    // A name that occurs in two files is reported.
    std::fs::remove_file(place.path("model/model-00003-of-00003.safetensors")).unwrap();
    shard("model/model-00003-of-00003.safetensors", "a");
    let said = place.import("twice", &[text(&place.path("model"))]);
    assert_eq!((&said["distinct_keys"], &said["duplicates"]), (&2.into(), &1.into()));
}
