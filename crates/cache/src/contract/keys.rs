//! How samples are found.

use tensorcask::{Dtype, Reader, Tensor};

use super::{doubling, elements, folder, ids, in_memory, one, refused, rows, tensor};
use crate::keys::ids::{Id, IntoIds};
use crate::keys::key::Content;
use crate::layer::Adapter;
use crate::layer::{CacheOptions, Cached};
use crate::values::input::{Argument, Inputs};
use crate::values::output::Output;

/// Strings and integers are ids; negative and mixed ones are refused.
pub fn ids_of_any_kind<F: Adapter>() {
    fn check<F: Adapter>(module: &Cached<F>, ids: impl IntoIds<F>) {
        assert_eq!(elements(module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), ids)), [1.0, 3.0]);
    }
    let (module, seen) = doubling(in_memory::<F>());
    check(&module, &[1_u64, 2]);
    check(&module, &[1_i64, 2]);
    check(&module, vec![1_usize, 2]);
    check(&module, &vec![1_u32, 2]);
    check(&module, &[Id::Int(1), Id::Int(2)]);
    assert_eq!(seen.samples(), 2);
    // The integer 1 is not the string "1".
    check(&module, &["1", "2"]);
    check(&module, vec!["1".to_owned(), "2".to_owned()]);
    assert_eq!(seen.samples(), 4);
    let call = |ids: &[i64]| module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), ids);
    refused(call(&[-1, 2]), "the id -1 is negative");
    refused(module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &[Id::Int(1), Id::Str("a".into())]), "key");
}

/// A sample with another byte, shape, dtype or place has another key.
pub fn content_is_every_byte<F: Adapter>() {
    let module = in_memory::<F>().wrap_inputs_fn(|inputs: &Inputs<F>| {
        let first = F::shape(inputs.tensor(0)?)[0];
        Ok(Output::<F>::Tensor(rows::<F>(0, first, 1)))
    });
    let module = module.unwrap().as_ref().clone();
    let argument = |shape: &[usize], elements: &[f32]| Argument::<F>::Tensor(tensor::<F>(shape, elements));
    let integers = |elements: &[i32]| F::from_stored(&Tensor::from_slice(&[1, 4], elements).unwrap()).unwrap();
    let x = || argument(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let calls = || {
        vec![
            Inputs::new().with(x()),
            Inputs::new().with(argument(&[1, 4], &[2.0, 3.0, 4.0, 1.0])),
            Inputs::new().with(argument(&[1, 4], &[1.0, 2.0, 3.0, 4.5])),
            Inputs::new().with(argument(&[1, 2, 2], &[1.0, 2.0, 3.0, 4.0])),
            Inputs::new().with(Argument::Tensor(integers(&[1, 2, 3, 4]))),
            Inputs::new().with(x()).with(x()),
            Inputs::new().with(x()).named("x", x()),
            Inputs::new().with(x()).with(Argument::Shared(tensor::<F>(&[1, 4], &[1.0, 2.0, 3.0, 4.0]))),
            Inputs::new().with(x()).with(Argument::Shared(tensor::<F>(&[1, 4], &[1.0, 2.0, 3.0, 5.0]))),
            Inputs::new().with(x()).with(1),
            Inputs::new().with(x()).with(1.0),
            Inputs::new().with(x()).with("1"),
            Inputs::new().with(x()).with(true),
            Inputs::new().with(x()).with(()),
            Inputs::new().with(x()).named("a", 1),
            Inputs::new().with(x()).named("b", 1),
            Inputs::new().with(x()).named("a", 1).named("b", 2),
        ]
    };
    let all = calls().len() as u64;
    calls().into_iter().for_each(|inputs| drop(module.forward(inputs).unwrap()));
    assert_eq!((module.counts().hits, module.counts().misses), (0, all));
    calls().into_iter().for_each(|inputs| drop(module.forward(inputs).unwrap()));
    assert_eq!((module.counts().hits, module.counts().misses), (all, all));
    // Named arguments are sorted by name, so their order does not matter.
    module.forward(Inputs::new().named("b", 2).with(x()).named("a", 1)).unwrap();
    assert_eq!(module.counts().misses, all);
    // With sampled content, bytes that are left out do not count.
    let sampled = Content::Sampled { edge_bytes: 8, stride_bytes: 4096 };
    let (module, seen) = doubling(in_memory::<F>().content(sampled));
    let mut elements = vec![0.0; 1000];
    for (at, misses) in [(0, 1), (100, 1), (999, 2)] {
        elements[at] = 1.0;
        module.forward(one::<F>(&tensor::<F>(&[1, 1000], &elements))).unwrap();
        elements[at] = 0.0;
        if at == 0 {
            elements[0] = 1.0;
        }
        assert_eq!(seen.samples(), misses, "{at}");
    }
}

/// With an id, the places of tensors count, and all other arguments.
pub fn places_of_arguments_count<F: Adapter>() {
    let module = in_memory::<F>().wrap_inputs_fn(|inputs: &Inputs<F>| {
        let batch = inputs.batch_size()?;
        Ok(Output::<F>::Tensor(rows::<F>(0, batch, 1)))
    });
    let module = module.unwrap().as_ref().clone();
    let x = || Argument::<F>::Tensor(rows::<F>(0, 2, 1));
    let calls = || {
        vec![
            Inputs::new().with(x()),
            Inputs::new().with(x()).with(x()),
            Inputs::new().named("x", x()),
            Inputs::new().with(x()).named("y", x()),
            Inputs::new().with(x()).with(3),
            Inputs::new().with(x()).named("layer", 3),
            Inputs::new().with(x()).named("layer", 4),
        ]
    };
    let all = 2 * calls().len() as u64;
    calls().into_iter().for_each(|inputs| drop(module.forward_with_ids(inputs, &ids(0, 2)).unwrap()));
    assert_eq!(module.counts().misses, all);
    calls().into_iter().for_each(|inputs| drop(module.forward_with_ids(inputs, &ids(0, 2)).unwrap()));
    assert_eq!((module.counts().hits, module.counts().misses), (all, all));
    // The elements of tensors do not count: the id names the sample.
    module.forward_with_ids(one::<F>(&rows::<F>(7, 2, 1)), &ids(0, 2)).unwrap();
    assert_eq!(module.counts().misses, all);
    // A lookup without the tensors.
    let kept = module.call(Inputs::tensors(2)).ids(&ids(0, 3)).contains().unwrap();
    assert_eq!(kept, [true, true, false]);
    let named = Inputs::new().named("x", Argument::<F>::Batched);
    assert_eq!(module.call(named).ids(&ids(1, 2)).contains().unwrap(), [true, false]);
}

/// Variants of a sample are kept apart.
pub fn variants_are_kept_apart<F: Adapter>() {
    let (module, seen) = doubling(in_memory::<F>());
    let x = rows::<F>(0, 2, 1);
    for _ in 0..2 {
        for variant in 0..3 {
            module.call(one::<F>(&x)).ids(&ids(0, 2)).variant(variant).run().unwrap();
            module.call(one::<F>(&x)).variant(variant).run().unwrap();
        }
    }
    assert_eq!(seen.samples(), 12);
    assert_eq!(module.call(Inputs::tensors(1)).ids(&ids(1, 2)).variant(2).contains().unwrap(), [true, false]);
    assert_eq!(module.call(Inputs::tensors(1)).ids(&ids(1, 2)).variant(3).contains().unwrap(), [false, false]);
}

/// The test vectors of `FORMAT.md`: a sample has the same key in every tensor library.
pub fn keys_are_those_of_every_library<F: Adapter>() {
    let folder = folder();
    let options = CacheOptions::<F>::in_folder(folder.path(), "vectors")
        .version("1")
        .argument("layer", 3)
        .fingerprint("weights", b"weights");
    let module = options.wrap_inputs_fn(|inputs: &Inputs<F>| {
        let batch = inputs.batch_size()?;
        Ok(Output::<F>::Tensor(rows::<F>(0, batch, 1)))
    });
    let module = module.unwrap().as_ref().clone();
    let of = |dtype, shape: &[usize], bytes: &[u8]| {
        F::from_stored(&Tensor::new(dtype, shape, bytes.to_vec()).unwrap()).unwrap()
    };
    let floats = tensor::<F>(&[1, 2, 2], &[1.0, -2.0, 0.5, 4.0]);
    let bytes = of(Dtype::U8, &[1, 3], &[7, 8, 9]);
    let halves = of(Dtype::BF16, &[1, 2], &[0x80, 0x3f, 0x00, 0xc0]);
    let share = |tensor: &F::Tensor| Argument::<F>::Tensor(F::share(tensor));
    module.forward(one::<F>(&floats)).unwrap();
    module.forward(one::<F>(&bytes).with(share(&halves)).named("layer", 3).named("scale", 0.5)).unwrap();
    module.call(one::<F>(&floats)).variant(2).run().unwrap();
    let plain = one::<F>(&bytes).with("text").with(true).with(()).with(Argument::Shared(F::share(&halves)));
    module.forward(plain).unwrap();
    module.forward_with_ids(one::<F>(&floats).named("layer", 3), &["cat.jpg"]).unwrap();
    module.call(one::<F>(&floats).with(share(&bytes))).ids(&[42_u64]).variant(1).run().unwrap();
    module.flush().unwrap();
    let kept = module.folder().unwrap();
    assert_eq!(kept.file_name().unwrap().to_str().unwrap(), IDENTITY);
    let reader = Reader::open(&kept, "bytes").unwrap();
    let mut keys: Vec<String> = reader.keys().map(|key| hex(&key.unwrap())).collect();
    let mut expected: Vec<String> = KEYS.iter().map(|(_, key)| (*key).to_owned()).collect();
    keys.sort_unstable();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

fn hex(key: &tensorcask::Key) -> String {
    match key.as_ref() {
        tensorcask::KeyRef::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        other => panic!("{other:?} is no hash"),
    }
}

/// The name of the identity's folder in [`keys_are_those_of_every_library`].
pub const IDENTITY: &str = "a6132510876bf7c3844209f1f18b4fff";

/// Calls in [`keys_are_those_of_every_library`], and the key of their only sample.
pub const KEYS: [(&str, &str); 6] = [
    ("content: F32 [2, 2] of 1, -2, 0.5, 4", "5e18aabb0d851c6384005faefd9cdf2b"),
    ("content: U8 [3] of 7, 8, 9; BF16 [2] of 1, -2; layer=3; scale=0.5", "15c2a18cf6326562d99c1802a9e442cb"),
    ("content: F32 [2, 2] of 1, -2, 0.5, 4; variant 2", "97b28fd64a23101708e019e2f97bc389"),
    (
        "content: U8 [3] of 7, 8, 9; \"text\"; true; null; shared BF16 [1, 2] of 1, -2",
        "16b900a73df8ff7ff88ff61487f7db64",
    ),
    ("id \"cat.jpg\": tensor; layer=3", "f38041f12ef44d7c6e350af7a239c1b5"),
    ("id 42: tensor, tensor; variant 1", "b04a489d0de8e96240bceabb39ca808b"),
];
