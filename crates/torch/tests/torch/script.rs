//! A TorchScript module with a parameter and a buffer, made without Python. The archive is the one that
//! `torch.jit.save` would write: a zip of stored files.

use tch::{CModule, Tensor};
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule};

use super::{assert_same, rows};

const CODE: &str = "\
class M(Module):
  __parameters__ = [\"weight\", ]
  __buffers__ = [\"shift\", ]
  weight : Tensor
  shift : Tensor
  training : bool
  def forward(self: __torch__.M,
    x: Tensor) -> Tensor:
    return torch.add(torch.mul(x, self.weight), self.shift)
";

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// A zip archive of stored files.
fn zip(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut zip, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let offset = zip.len() as u32;
        let mut fields: Vec<u8> = [20_u16, 0, 0, 0, 0x21].iter().flat_map(|n| n.to_le_bytes()).collect();
        let len = bytes.len() as u32;
        fields.extend([crc32(bytes), len, len].iter().flat_map(|n| n.to_le_bytes()));
        fields.extend([name.len() as u16, 0].iter().flat_map(|n| n.to_le_bytes()));
        zip.extend(b"PK\x03\x04");
        zip.extend(&fields);
        zip.extend(name.as_bytes());
        zip.extend(bytes);
        list.extend(b"PK\x01\x02\x14\x00");
        list.extend(&fields);
        list.extend([0; 10]);
        list.extend(offset.to_le_bytes());
        list.extend(name.as_bytes());
    }
    let start = zip.len() as u32;
    let count = files.len() as u16;
    zip.extend(&list);
    zip.extend(b"PK\x05\x06");
    zip.extend([0_u16, 0, count, count].iter().flat_map(|n| n.to_le_bytes()));
    zip.extend([list.len() as u32, start].iter().flat_map(|n| n.to_le_bytes()));
    zip.extend([0, 0]);
    zip
}

/// The pickle of a string.
fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// The pickle of a tensor of three numbers, whose elements are in the file `storage`.
fn tensor(storage: &str) -> Vec<u8> {
    let parts: [&[u8]; 7] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(storage),
        &text("cpu"),
        // Three elements at offset 0, shape (3,), strides (1,), no gradient, no hooks.
        b"K\x03tQK\x00K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR",
        b"",
    ];
    parts.concat()
}

/// `x * weight + shift`.
fn archive(weight: [f32; 3], shift: [f32; 3]) -> Vec<u8> {
    let parts: [&[u8]; 8] = [
        b"\x80\x02c__torch__\nM\n)\x81}(",
        &text("weight"),
        &tensor("0"),
        &text("shift"),
        &tensor("1"),
        &text("training"),
        b"\x88",
        b"ub.",
    ];
    let numbers = |numbers: [f32; 3]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    zip(&[
        ("m/data.pkl", parts.concat()),
        ("m/code/__torch__.py", CODE.into()),
        ("m/data/0", numbers(weight)),
        ("m/data/1", numbers(shift)),
        ("m/constants.pkl", b"\x80\x02).".to_vec()),
        ("m/version", b"3\n".to_vec()),
    ])
}

fn read(weight: [f32; 3], shift: [f32; 3]) -> CModule {
    CModule::load_data(&mut archive(weight, shift).as_slice()).unwrap()
}

fn check(module: &CachedModule, weight: [f32; 3], shift: [f32; 3]) {
    let expected = rows(0, 2, 3) * Tensor::from_slice(&weight) + Tensor::from_slice(&shift);
    assert_same(&module.forward(&rows(0, 2, 3)).unwrap().into_tensor().unwrap(), &expected);
}

#[test]
fn a_script_is_the_same_with_and_without_handles_on_its_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let (weight, shift) = ([1.0, 2.0, 3.0], [0.5, 0.0, -0.5]);
    let wrap = |module| CacheOptions::in_folder(dir.path(), "m").wrap_script(module).unwrap();
    let first = wrap(read(weight, shift));
    check(&first, weight, shift);
    let module = read(weight, shift);
    let held = module.named_parameters().unwrap();
    assert_eq!(held.len(), 1);
    let second = wrap(module);
    assert_eq!(second.folder(), first.folder());
    // Holding, running and switching the module before does not matter either.
    let mut third = read(weight, shift);
    drop(third.named_parameters().unwrap());
    let _output = third.forward_ts(&[rows(0, 2, 3)]).unwrap();
    third.set_train();
    let third = wrap(third);
    assert_eq!(third.folder(), first.folder());
    check(&third, weight, shift);
    assert_eq!((second.counts().misses, third.counts().misses), (0, 0));
    drop(held);
}

#[test]
fn parameters_and_buffers_of_a_script_count() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |weight, shift| CacheOptions::in_folder(dir.path(), "m").wrap_script(read(weight, shift)).unwrap();
    let mut folders = Vec::new();
    for (weight, shift) in [([1.0; 3], [0.0; 3]), ([2.0; 3], [0.0; 3]), ([1.0; 3], [1.0, 0.0, 0.0])] {
        let module = wrap(weight, shift);
        check(&module, weight, shift);
        assert_eq!(module.counts().misses, 2);
        folders.push(module.folder());
    }
    folders.dedup();
    assert_eq!(folders.len(), 3);
}
