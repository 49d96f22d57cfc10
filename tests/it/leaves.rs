//! Reads of several leaves, of parts of them and of their shapes say what `get_batch` says.

use std::sync::Arc;

use proptest::prelude::*;
use tensorcask::storage::MemoryStorage;
use tensorcask::{Codec, Dtype, Error, LeafBuffer, Options, Reader, Result, Schema, Store, Tensor, Value, Verify};

use crate::storages::Kind;

/// The leaf of `value` at `path`, which has no escapes.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('/').skip(1).try_fold(value, |value, step| match value {
        Value::Map(_) => value.get(step),
        _ => value.as_items().and_then(|items| items.get(step.parse::<usize>().ok()?)),
    })
}

/// Dtype, shape and bytes of a leaf that is a tensor or a scalar.
fn fixed(leaf: &Value) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
    Some(match leaf {
        Value::Tensor(tensor) => (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec()),
        Value::Bool(flag) => (Dtype::Bool, vec![], vec![u8::from(*flag)]),
        Value::Int(number) => (Dtype::I64, vec![], number.to_le_bytes().to_vec()),
        Value::Float(number) => (Dtype::F64, vec![], number.to_le_bytes().to_vec()),
        _ => return None,
    })
}

const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::F64, Dtype::U8, Dtype::Bool, Dtype::I16, Dtype::C64];

fn leaf() -> impl Strategy<Value = Value> {
    let tensor = (prop::sample::select(&DTYPES[..]), prop::collection::vec(0..4_usize, 0..3), any::<u8>());
    let tensor = tensor.prop_map(|(dtype, shape, seed)| {
        let len = dtype.tensor_len_bytes(&shape).unwrap();
        let byte =
            |at: usize| (at as u8).wrapping_mul(37).wrapping_add(seed) & if dtype == Dtype::Bool { 1 } else { 0x3f };
        Tensor::new(dtype, &shape, (0..len).map(byte).collect::<Vec<u8>>()).unwrap().into()
    });
    prop_oneof![
        6 => tensor,
        1 => any::<bool>().prop_map(Value::Bool),
        1 => any::<i64>().prop_map(Value::Int),
        1 => any::<f64>().prop_map(Value::Float),
        1 => Just(Value::from("text")),
        1 => Just(Value::Null),
    ]
}

/// A few structures, so that rows share some.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => leaf(),
        4 => (leaf(), leaf()).prop_map(|(a, b)| Value::from([("a", a), ("b", b)])),
        2 => (leaf(), leaf(), leaf()).prop_map(|(a, b, c)| Value::from([("a", a), ("c", Value::from_iter([b, c]))])),
        1 => (leaf(), leaf()).prop_map(|(a, b)| Value::Tuple(vec![a, b])),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    options: Options,
    values: Vec<Value>,
    /// How many values are sealed, and how many are flushed.
    sealed: usize,
    flushed: usize,
    /// Keys that are read, of which some do not exist.
    keys: Vec<u64>,
    /// The value whose structure is wanted, and which of its leaves.
    like: usize,
    picks: Vec<bool>,
    first: Option<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let codec = prop::sample::select(vec![Codec::None, Codec::Zstd { level: 1 }, Codec::ShuffleZstd { level: 1 }]);
    let verify = prop::sample::select(vec![Verify::FirstRead, Verify::Always, Verify::Never]);
    let options = (codec, verify, any::<(bool, bool, bool)>()).prop_map(|(codec, verify, (cached, down, restores))| {
        let options = Options::new().codec(codec).verify(verify).restore_dtype(restores).synchronous(true);
        let options = if down { options.store_as(Dtype::F16) } else { options };
        options.value_cache_bytes(if cached { 1 << 16 } else { 0 })
    });
    let values = (prop::collection::vec(value(), 1..4), prop::collection::vec(any::<prop::sample::Index>(), 1..30))
        .prop_map(|(few, picks)| picks.into_iter().map(|pick| pick.get(&few).clone()).collect::<Vec<Value>>());
    let reads = (prop::collection::vec(0..40_u64, 0..20), 0..40_usize, prop::collection::vec(any::<bool>(), 4));
    (options, values, 0..30_usize, 0..30_usize, reads, prop::option::of(0..3_usize)).prop_map(
        |(options, values, sealed, flushed, (keys, like, picks), first)| {
            let like = like % values.len();
            Case { options, values, sealed, flushed, keys, like, picks, first }
        },
    )
}

/// A store with the values of `case`: some sealed, some in an active segment, some waiting.
fn fill(case: &Case) -> Store {
    let storage = Arc::new(MemoryStorage::new());
    let store = case.options.clone().open_on(Arc::clone(&storage) as _).unwrap();
    let put = |store: &Store, from: usize, to: usize| {
        for (key, value) in case.values.iter().enumerate().take(to).skip(from) {
            store.put(key as u64, value).unwrap();
        }
    };
    put(&store, 0, case.sealed);
    store.close().unwrap();
    let store = case.options.clone().open_on(storage).unwrap();
    put(&store, case.sealed, case.flushed);
    store.flush().unwrap();
    put(&store, case.flushed.max(case.sealed), case.values.len());
    store
}

/// A slice of the first dimension: what a tensor of this dtype and shape has there.
fn slice(
    found: (Dtype, Vec<usize>, Vec<u8>),
    first: Option<usize>,
    wanted: &[usize],
) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
    let Some(first) = first else { return Some(found) };
    let (dtype, shape, bytes) = found;
    let (len, rest) = shape.split_first()?;
    if rest != wanted.get(1..)? || first + wanted[0] > *len {
        return None;
    }
    let entry = dtype.tensor_len_bytes(rest)?;
    let part = bytes[first * entry..(first + wanted[0]) * entry].to_vec();
    Some((dtype, wanted.to_vec(), part))
}

/// Reads the chosen leaves both ways. Returns whether all rows had them.
fn check(reader: &Reader, case: &Case) -> std::result::Result<bool, TestCaseError> {
    let like = reader.get(case.like as u64).unwrap().unwrap();
    let schema = Schema::of(&like).unwrap();
    let leaves: Vec<_> = schema.leaves().iter().filter(|leaf| leaf.shape().is_some()).collect();
    let leaves: Vec<_> = leaves.into_iter().zip(&case.picks).filter(|(_, pick)| **pick).map(|(leaf, _)| leaf).collect();
    // Slices of what has a first dimension, one entry shorter than the whole.
    let wanted: Vec<(&str, Dtype, Vec<usize>, Option<usize>)> = leaves
        .iter()
        .map(|leaf| {
            let mut shape = leaf.shape().unwrap().to_vec();
            let first = case.first.filter(|_| shape.first().is_some_and(|len| *len > 0));
            shape.iter_mut().take(usize::from(first.is_some())).for_each(|len| *len -= 1);
            (leaf.path(), leaf.dtype().unwrap(), shape, first)
        })
        .collect();
    let width =
        |(_, dtype, shape, _): &(&str, Dtype, Vec<usize>, Option<usize>)| dtype.tensor_len_bytes(shape).unwrap();
    let mut outs: Vec<Vec<u8>> = wanted.iter().map(|leaf| vec![0xEE; width(leaf) * case.keys.len()]).collect();
    let mut expected = outs.clone();
    let mut found = vec![true; case.keys.len()];
    let mut buffers: Vec<LeafBuffer<'_>> = wanted
        .iter()
        .zip(&mut outs)
        .map(|((path, dtype, shape, first), out)| {
            let buffer = LeafBuffer::bytes(path, *dtype, shape, out);
            match first {
                Some(first) => buffer.starting_at(*first),
                None => buffer,
            }
        })
        .collect();
    let result = reader.get_leaves_into(&case.keys, &mut buffers, &mut found);
    drop(buffers);
    let values = reader.get_batch(&case.keys).unwrap();
    let mut fits = true;
    for (row, value) in values.iter().enumerate() {
        let Ok(Some(value)) = value else { continue };
        for (leaf, out) in wanted.iter().zip(&mut expected) {
            let (path, dtype, shape, first) = leaf;
            let part = at(value, path).and_then(fixed).and_then(|found| slice(found, *first, shape));
            match part {
                Some((d, s, bytes)) if d == *dtype && s == *shape => {
                    out[row * width(leaf)..(row + 1) * width(leaf)].copy_from_slice(&bytes);
                }
                _ => fits = false,
            }
        }
    }
    match result {
        Ok(hits) => {
            prop_assert!(fits);
            prop_assert_eq!(&outs, &expected);
            let present: Vec<bool> = values.iter().map(|value| matches!(value, Ok(Some(_)))).collect();
            prop_assert_eq!(hits, present.iter().filter(|there| **there).count());
            prop_assert_eq!(found, present);
        }
        Err(Error::Item(item)) => {
            prop_assert!(matches!(item.error, Error::Mismatch { .. }), "{}", item);
            prop_assert_eq!(item.key, case.keys[item.position].to_string());
            prop_assert!(!fits);
        }
        Err(error) => prop_assert!(false, "{}", error),
    }
    check_whole(reader, case, &like, &schema, &values)?;
    check_shapes(reader, case, &values)?;
    check_ragged(reader, case, &like, &values)?;
    Ok(fits)
}

/// Whole values of one structure.
fn check_whole(
    reader: &Reader,
    case: &Case,
    like: &Value,
    schema: &Schema,
    values: &[Result<Option<Value>>],
) -> std::result::Result<(), TestCaseError> {
    let width = |leaf: &tensorcask::Leaf| leaf.dtype().unwrap().tensor_len_bytes(leaf.shape().unwrap()).unwrap();
    let mut found = vec![false; case.keys.len()];
    if schema.leaves().iter().any(|leaf| leaf.shape().is_none()) {
        let mut outs: Vec<&mut [u8]> = schema.leaves().iter().map(|_| <&mut [u8]>::default()).collect();
        let refused = reader.get_values_into(&case.keys, schema, &mut outs, &mut found);
        prop_assert!(refused.is_err_and(|error| error.to_string().contains("differs in size from row to row")));
        return Ok(());
    }
    let mut outs: Vec<Vec<u8>> = schema.leaves().iter().map(|leaf| vec![0; width(leaf) * case.keys.len()]).collect();
    let result = {
        let mut outs: Vec<&mut [u8]> = outs.iter_mut().map(Vec::as_mut_slice).collect();
        reader.get_values_into(&case.keys, schema, &mut outs, &mut found)
    };
    let present: Vec<(usize, &Value)> =
        values.iter().enumerate().filter_map(|(row, value)| Some((row, value.as_ref().unwrap().as_ref()?))).collect();
    let alike = present.iter().all(|(_, value)| Schema::of(value).unwrap() == *schema);
    match result {
        Ok(hits) => {
            prop_assert!(alike, "{:?} {:?}", like, present);
            prop_assert_eq!(hits, present.len());
            for (row, value) in present {
                for (leaf, out) in schema.leaves().iter().zip(&outs) {
                    let bytes = fixed(at(value, leaf.path()).unwrap()).unwrap().2;
                    prop_assert_eq!(&out[row * width(leaf)..(row + 1) * width(leaf)], &bytes[..]);
                }
            }
        }
        Err(error) => prop_assert!(!alike && matches!(error.cause(), Error::Mismatch { .. }), "{}", error),
    }
    Ok(())
}

fn check_shapes(
    reader: &Reader,
    case: &Case,
    values: &[Result<Option<Value>>],
) -> std::result::Result<(), TestCaseError> {
    for path in ["value", "value/a", "value/c/1", "value/nowhere"] {
        let shape = |value: &Result<Option<Value>>| match value.as_ref().unwrap() {
            Some(value) => at(value, path).and_then(fixed).map(|(_, shape, _)| Some(shape)),
            None => Some(None),
        };
        let expected: Option<Vec<Option<Vec<usize>>>> = values.iter().map(shape).collect();
        match (reader.shapes(&case.keys, path), expected) {
            (Ok(found), Some(expected)) => prop_assert_eq!(found, expected),
            (Err(error), None) => prop_assert!(matches!(error.cause(), Error::Mismatch { .. }), "{}", error),
            (found, expected) => prop_assert!(false, "{:?} {:?}", found, expected),
        }
    }
    Ok(())
}

/// Tensors with a first dimension, in one buffer that has other elements before.
fn check_ragged(
    reader: &Reader,
    case: &Case,
    like: &Value,
    values: &[Result<Option<Value>>],
) -> std::result::Result<(), TestCaseError> {
    let schema = Schema::of(like).unwrap();
    for leaf in schema.leaves().iter().filter(|leaf| leaf.shape().is_some_and(|shape| !shape.is_empty())) {
        let (dtype, entry_shape) = (leaf.dtype().unwrap(), &leaf.shape().unwrap()[1..]);
        let (mut out, mut offsets, mut found) = (vec![9; 50], vec![9; 50], vec![true; case.keys.len()]);
        let result = reader.get_ragged_into_bytes(
            &case.keys,
            leaf.path(),
            dtype,
            entry_shape,
            &mut out,
            &mut offsets,
            &mut found,
        );
        let rows: Option<Vec<_>> = values
            .iter()
            .map(|value| match value.as_ref().unwrap() {
                None => Some(None),
                Some(value) => {
                    let found = at(value, leaf.path()).and_then(fixed)?;
                    (found.0 == dtype && found.1.get(1..) == Some(entry_shape)).then_some(Some(found))
                }
            })
            .collect();
        let Some(rows) = rows else {
            let refused = result.is_err_and(|error| matches!(error.cause(), Error::Mismatch { .. }));
            prop_assert!(refused);
            continue;
        };
        prop_assert_eq!(result.unwrap(), rows.iter().flatten().count());
        prop_assert_eq!(found, rows.iter().map(Option::is_some).collect::<Vec<bool>>());
        let mut end = 0;
        let ends = rows.iter().map(|row| {
            end += row.as_ref().map_or(0, |(_, shape, _)| shape[0]);
            end
        });
        prop_assert_eq!(offsets, std::iter::once(0).chain(ends).collect::<Vec<usize>>());
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|(_, _, bytes)| bytes.clone()).collect();
        prop_assert_eq!(out, bytes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn leaves_are_those_of_the_values(case in case()) {
        let store = fill(&case);
        check(store.reader(), &case)?;
        // Again, with checksums compared and values cached.
        check(store.reader(), &case)?;
        let total: u64 = store.schemas().unwrap().iter().map(|used| used.rows).sum();
        prop_assert_eq!(total, case.values.len() as u64);
        store.close().unwrap();
        check(store.reader(), &case)?;
    }
}

fn pair(a: f32, b: i64) -> Value {
    Value::from([
        ("a", Value::from(Tensor::from_slice(&[300], &[a; 300]).unwrap())),
        ("b", b.into()),
        ("c", (b % 2 == 0).into()),
    ])
}

#[test]
fn damaged_rows_are_named_and_the_others_are_copied() {
    for cache_bytes in [0, 1 << 20] {
        let storage = Kind::Memory.empty();
        let options = Options::new().synchronous(true).value_cache_bytes(cache_bytes);
        let store = options.clone().open_on(storage.storage()).unwrap();
        store.put_batch(&["one", "two", "three"], &[pair(1.5, 1), pair(2.5, 2), pair(3.5, 3)]).unwrap();
        store.close().unwrap();
        let path = storage.files("segments")[0].clone();
        let bytes = storage.read(&path);
        let hit = bytes.windows(1200).position(|window| window == [2.5_f32; 300].map(f32::to_le_bytes).as_flattened());
        storage.corrupt(&path, hit.unwrap() as u64, 1);
        let reader = options.open_reader_on(storage.storage()).unwrap();
        let (mut labels, mut flags, mut found) = ([0_i64; 4], [9_u8; 4], [true; 4]);
        let mut leaves =
            [LeafBuffer::bytes("value/c", Dtype::Bool, &[], &mut flags), LeafBuffer::new("value/b", &[], &mut labels)];
        let keys = ["none", "three", "two", "one"];
        let read = reader.get_leaves_into(&keys, &mut leaves, &mut found);
        if cache_bytes == 0 {
            // Leaves have checksums of their own, so those that are intact are served.
            assert_eq!((read.unwrap(), found), (3, [false, true, true, true]));
            assert_eq!((labels[2], flags[2]), (2, 1));
        } else {
            // The cache keeps whole values.
            let Error::DamagedRows { rows } = read.unwrap_err() else { panic!() };
            assert!(matches!(&rows[..], [row] if row.position == 2 && row.key == "\"two\"" && row.error.is_corrupt()));
            assert_eq!(found, [false, true, false, true]);
        }
        assert_eq!((labels[1], labels[3], flags[0], flags[1], flags[3]), (3, 1, 9, 0, 0));
        let error = reader.get("two").unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        let (mut out, mut offsets) = (Vec::<f32>::new(), Vec::new());
        let error = reader.get_ragged_into(&keys, "value/a", &[], &mut out, &mut offsets, &mut found).unwrap_err();
        let Error::DamagedRows { rows } = error else { panic!("{error}") };
        assert_eq!((rows.len(), rows[0].position, found), (1, 2, [false, true, false, true]));
        assert_eq!((offsets, out), (vec![0, 0, 300, 300, 600], [[3.5; 300], [1.5; 300]].concat()));
        assert_eq!(reader.shapes(&keys, "value/a").unwrap(), [None, Some(vec![300]), Some(vec![300]), Some(vec![300])]);
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn leaves_are_checked_one_by_one() {
    let leaf = |key: u64, number: u64| noise(key * 8 + number + 1, 600);
    let value = |key: u64| {
        let tensor = |number| Value::from(Tensor::new(Dtype::U8, &[600], leaf(key, number)).unwrap());
        let bytes = Value::Bytes(leaf(key, 2).into());
        Value::from([("a", tensor(0)), ("n", Value::Int(key as i64)), ("b", tensor(1)), ("c", bytes)])
    };
    for (codec, verify) in [Codec::None, Codec::Zstd { level: 1 }, Codec::ShuffleZstd { level: 1 }]
        .into_iter()
        .flat_map(|codec| [Verify::FirstRead, Verify::Always].map(|verify| (codec, verify)))
    {
        let storage = Kind::Memory.empty();
        let options = Options::new().synchronous(true).codec(codec).verify(verify);
        let store = options.clone().open_on(storage.storage()).unwrap();
        (0..10_u64).for_each(|key| store.put(key, value(key)).unwrap());
        store.close().unwrap();
        let path = storage.files("segments")[0].clone();
        let bytes = storage.read(&path);
        // Damages leaf `number` of key 4.
        for number in 0..3 {
            let hurt = storage.copy();
            let at = bytes.windows(500).position(|window| window == &leaf(4, number)[50..550]).unwrap();
            hurt.corrupt(&path, at as u64 + 9, 4);
            let reader = options.clone().open_reader_on(hurt.storage()).unwrap();
            for _ in 0..2 {
                for (read, path) in ["value/a", "value/b"].into_iter().enumerate() {
                    let (mut out, mut found) = (vec![0; 1200], [false; 2]);
                    let buffer = LeafBuffer::bytes(path, Dtype::U8, &[600], &mut out);
                    let result = reader.get_leaves_into(&[3_u64, 4], &mut [buffer], &mut found);
                    let is_hurt = read as u64 == number;
                    assert_eq!((result.is_err(), found), (is_hurt, [true, !is_hurt]), "{codec:?} {number} {path}");
                    assert_eq!(out[..600], leaf(3, read as u64));
                    assert!(is_hurt || out[600..] == leaf(4, read as u64));
                    let (mut all, mut offsets) = (Vec::<u8>::new(), Vec::new());
                    let result = reader.get_ragged_into(&[4_u64, 3], path, &[], &mut all, &mut offsets, &mut found);
                    assert_eq!(result.is_err(), is_hurt);
                }
                let (mut numbers, mut found) = ([0_i64; 2], [false; 2]);
                let buffer = LeafBuffer::new("value/n", &[], &mut numbers);
                assert_eq!(reader.get_leaves_into(&[4_u64, 3], &mut [buffer], &mut found).unwrap(), 2);
                assert_eq!(numbers, [4, 3]);
                assert_eq!(reader.get(3_u64).unwrap(), Some(value(3)));
                assert!(reader.get(4_u64).unwrap_err().is_corrupt());
                assert!(!reader.verify(&mut |_, _| {}).unwrap().is_clean());
            }
        }
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let store = Options::new().synchronous(true).open_on(Arc::new(MemoryStorage::new())).unwrap();
    store.put_batch(&["one", "two"], &[pair(1.0, 1), Value::from([("b", 2_i64.into()), ("a", Value::Null)])]).unwrap();
    let keys = ["one", "two"];
    let refused = |leaf: LeafBuffer<'_>| store.get_leaves_into(&keys, &mut [leaf], &mut [false; 2]).unwrap_err();
    let error = refused(LeafBuffer::new("value/b", &[2], &mut [0_i64; 3])).to_string();
    assert!(
        error.contains("leaf value/b: 2 I64 rows of shape [2] take 16 bytes each, but the buffer has 24"),
        "{error}"
    );
    let error = refused(LeafBuffer::new("value/b", &[], &mut [0_i64; 2]).starting_at(1)).to_string();
    assert!(error.contains("leaf value/b: a row without dimensions has no slice"), "{error}");
    let error = refused(LeafBuffer::new("value/a", &[usize::MAX, 2], &mut [0.0_f32; 2])).to_string();
    assert!(error.contains("its size overflows"), "{error}");
    let error = refused(LeafBuffer::new("value/a", &[300], &mut [0.0_f32; 600]));
    assert!(matches!(&error, Error::Item(item) if item.position == 1 && item.key == "\"two\""), "{error}");
    let message = error.to_string();
    assert!(message.contains("the row is {\"b\": int, \"a\": null}, but the buffer expects"), "{message}");
    assert!(message.contains("a F32 tensor of shape [300] at value/a"), "{message}");
    let error = refused(LeafBuffer::new("value/a", &[2], &mut [0.0_f32; 4]).starting_at(299)).to_string();
    assert!(error.contains("shape [2], from entry 299 of its first dimension on, at value/a"), "{error}");
    let schema = Schema::of(&pair(0.0, 0)).unwrap();
    let error = store.get_values_into(&keys, &schema, &mut [&mut []], &mut [false; 2]).unwrap_err().to_string();
    assert!(error.contains("1 buffers were passed for values of 3 leaves"), "{error}");
    let (mut a, mut b, mut c) = ([0_u8; 2400], [0_u8; 16], [0_u8; 2]);
    let error = store.get_values_into(&keys, &schema, &mut [&mut a, &mut b, &mut c], &mut [false; 2]).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("key \"two\" at position 1: the row is {\"b\": int, \"a\": null}"), "{message}");
    assert_eq!(store.get_leaves_into(&keys, &mut [], &mut [false; 2]).unwrap(), 2, "only whether they are there");
}

#[test]
fn large_batches_are_split_over_threads() {
    const ROWS: usize = 3000;
    let store = Options::new().read_threads(4).open_on(Arc::new(MemoryStorage::new())).unwrap();
    let value = |key: usize| {
        let tensor =
            |width: usize, seed: usize| Tensor::from_slice(&[width], &vec![(key * seed) as u32; width]).unwrap();
        Value::from([("a", Value::from(tensor(700, 1))), ("b", tensor(0, 1).into()), ("c", tensor(200, 3).into())])
    };
    let keys: Vec<u64> = (0..ROWS as u64).collect();
    store.put_batch(&keys, &(0..ROWS).map(value).collect::<Vec<_>>()).unwrap();
    let schema = Schema::of(&value(0)).unwrap();
    for _ in 0..2 {
        let (mut a, mut c, mut found) = (vec![0_u8; ROWS * 2800], vec![0_u8; ROWS * 800], vec![false; ROWS]);
        let mut backwards = keys.clone();
        backwards.reverse();
        let outs: &mut [&mut [u8]] = &mut [&mut a, &mut [], &mut c];
        assert_eq!(store.get_values_into(&backwards, &schema, outs, &mut found).unwrap(), ROWS);
        for (row, key) in backwards.iter().enumerate() {
            let number = |bytes: &[u8], width: usize| {
                u32::from_le_bytes(bytes[(row + 1) * width - 4..(row + 1) * width].try_into().unwrap())
            };
            assert_eq!((u64::from(number(&a, 2800)), u64::from(number(&c, 800))), (*key, key * 3));
        }
        store.close().unwrap();
    }
}
