//! Values and keys as text and as JSON.

use serde_json::{Value as Json, json};
use tensorcask::half::{bf16, f16};
use tensorcask::{Dtype, Tensor, Value};

use crate::support::{ok, store, tensor, text};

#[test]
fn keys_and_names_stay_on_their_line() {
    let (_dir, m) = store(|store| {
        store.put("a\nb\u{1b}[2J", Value::Map(vec![("x\ny".into(), Value::Int(1))])).unwrap();
        store.put("plain \"key\"", Value::Int(2)).unwrap();
    });
    assert_eq!(ok(&["ls", text(&m), "--prefix", ""]), "\"a\\nb\\u{1b}[2J\"\nplain \"key\"\n");
    assert_eq!(ok(&["ls", text(&m), "--prefix", "a", "-l"]).lines().count(), 1);
    assert_eq!(ok(&["get", text(&m), "a\nb\u{1b}[2J"]), "\"x\\ny\": 1\n");
    let lines = ok(&["ls", text(&m), "--prefix", "", "--format", "json"]);
    let keys: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(keys, [json!({ "key": "a\nb\u{1b}[2J" }), json!({ "key": "plain \"key\"" })]);
}

fn shown(value: &Value) -> (String, Json) {
    let (_dir, m) = store(|store| store.put("k", value).unwrap());
    let human = ok(&["get", text(&m), "k", "--head", "100000"]);
    let json = serde_json::from_str(&ok(&["get", text(&m), "k", "--head", "100000", "--format", "json"])).unwrap();
    (human.trim_end().to_owned(), json)
}

/// The elements that `get` prints, as text and as JSON.
fn elements(value: &Value) -> (Vec<String>, Vec<Json>) {
    let (human, json) = shown(value);
    let list = human.split_once("] [").unwrap().1.trim_end_matches(']');
    (list.split(", ").map(str::to_owned).collect(), json["head"].as_array().unwrap().clone())
}

#[test]
fn numbers_read_back() {
    let floats = [0.1_f32, 1.0, -0.0, 1e-45, 3.4028235e38, 16777216.0, 1.0 / 3.0, f32::MIN_POSITIVE, 1e10, -2.5e-7];
    let (human, json) = elements(&tensor(&[10], &floats));
    assert_eq!((human[0].as_str(), json[0].to_string().as_str()), ("0.1", "0.1"));
    for ((float, human), json) in floats.iter().zip(&human).zip(&json) {
        assert_eq!(human.parse::<f32>().unwrap().to_bits(), float.to_bits());
        assert_eq!((json.as_f64().unwrap() as f32).to_bits(), float.to_bits());
    }
    let doubles = [0.1_f64, 1e300, 5e-324, -0.0, f64::MAX, 1.0 / 3.0];
    let (human, json) = elements(&tensor(&[6], &doubles));
    for ((double, human), json) in doubles.iter().zip(&human).zip(&json) {
        assert_eq!(human.parse::<f64>().unwrap().to_bits(), double.to_bits());
        assert_eq!(json.as_f64().unwrap().to_bits(), double.to_bits());
    }
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let words = json!(["NaN", "Infinity", "-Infinity"]);
    for value in [
        tensor(&[3], &special),
        tensor(&[3], &special.map(f64::from)),
        tensor(&[3], &special.map(f16::from_f32)),
        tensor(&[3], &special.map(bf16::from_f32)),
    ] {
        let (human, json) = elements(&value);
        assert_eq!((human, Json::Array(json)), (["NaN", "inf", "-inf"].map(String::from).to_vec(), words.clone()));
    }
    assert_eq!(shown(&tensor(&[1], &[[0.1_f32, f32::NAN]])).1["head"], json!([[0.1, "NaN"]]));
    assert_eq!(shown(&Value::Float(f64::NAN)), ("NaN".into(), json!("NaN")));
    assert_eq!(
        shown(&Value::List(vec![Value::Float(f64::NEG_INFINITY), Value::Float(0.1)])).1,
        json!(["-Infinity", 0.1])
    );
    assert_eq!(shown(&Value::Float(1e300)).0, "1e300");
}

#[test]
fn every_half_reads_back() {
    let halves: Vec<f16> = (0..=u16::MAX).step_by(7).map(f16::from_bits).filter(|half| half.is_finite()).collect();
    let (human, json) = elements(&tensor(&[halves.len()], &halves));
    for ((half, human), json) in halves.iter().zip(&human).zip(&json) {
        assert_eq!(f16::from_f64(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(f16::from_f32(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(f16::from_f64(json.as_f64().unwrap()).to_bits(), half.to_bits(), "{json}");
    }
    let brains: Vec<bf16> = (0..=u16::MAX).step_by(7).map(bf16::from_bits).filter(|half| half.is_finite()).collect();
    let (human, json) = elements(&tensor(&[brains.len()], &brains));
    for ((half, human), json) in brains.iter().zip(&human).zip(&json) {
        assert_eq!(bf16::from_f64(human.parse().unwrap()).to_bits(), half.to_bits(), "{human}");
        assert_eq!(bf16::from_f64(json.as_f64().unwrap()).to_bits(), half.to_bits(), "{json}");
    }
    let tenth = |value: Value| shown(&value).0;
    assert_eq!(tenth(tensor(&[2], &[0.1, 1.5].map(f16::from_f32))), "F16 [2] [0.1, 1.5]");
    assert_eq!(tenth(tensor(&[2], &[0.1, 1.5].map(bf16::from_f32))), "BF16 [2] [0.1, 1.5]");
}

#[test]
fn large_integers_are_exact() {
    let large = [u64::MAX, (1 << 53) + 1];
    let (human, json) = elements(&tensor(&[2], &large));
    assert_eq!(human, large.map(|number| number.to_string()));
    assert_eq!(json.iter().map(|number| number.as_u64().unwrap()).collect::<Vec<_>>(), large);
    let large = [i64::MIN, i64::MAX, -(1 << 53) - 1];
    let (human, json) = elements(&tensor(&[3], &large));
    assert_eq!(human, large.map(|number| number.to_string()));
    assert_eq!(json.iter().map(|number| number.as_i64().unwrap()).collect::<Vec<_>>(), large);
    assert_eq!(shown(&Value::Int(i64::MIN)), (i64::MIN.to_string(), json!(i64::MIN)));
    let (_dir, m) = store(|store| store.put(u64::MAX, &Value::Null).unwrap());
    assert_eq!(ok(&["ls", text(&m), "--format", "json"]), format!("{{\"key\":{}}}\n", u64::MAX));
}

#[test]
fn head_limits_the_elements_that_are_shown() {
    let (_dir, m) = store(|store| store.put("k", tensor(&[3], &[1_u8, 2, 3])).unwrap());
    for (head, expected) in [("0", "U8 [3] […]\n"), ("2", "U8 [3] [1, 2, …]\n"), ("3", "U8 [3] [1, 2, 3]\n")] {
        assert_eq!(ok(&["get", text(&m), "k", "--head", head]), expected);
    }
    let packed = Value::Tensor(Tensor::new(Dtype::F4, &[4], vec![1, 2]).unwrap());
    assert_eq!(shown(&packed).0, "F4 [4] [1, 2]");
}
