//! A folder that is shared with the Python package: `TENSORCASK_PYTHON` names a Python that has it and PyTorch.

use std::path::Path;
use std::process::Command;

use tch::{Device, Kind, Tensor, nn};
use tensorcask_torch::{CacheOptions, CachedModule, WrapModules as _};

use super::{assert_same, rows};

/// Wraps a linear layer with the weights of `linear` below, and computes or finds the outputs of four samples by integer
/// ids, by names and by content. Prints hits and misses.
const PROGRAM: &str = r#"
import sys
import torch
import tensorcask as tc

linear = torch.nn.Linear(3, 2)
with torch.no_grad():
    linear.weight.copy_(torch.arange(6.0).reshape(2, 3))
    linear.bias.copy_(torch.tensor([0.5, -0.5]))
cached = tc.cache(linear, sys.argv[1], module_id="linear", freeze=True, check_structure=False)
x = torch.arange(12.0).reshape(4, 3)
expected = x @ torch.arange(6.0).reshape(2, 3).T + torch.tensor([0.5, -0.5])
for output in (cached(x, ids=torch.arange(4)), cached(x, ids=["a", "b", "c", "d"]), cached(x)):
    assert torch.equal(output, expected), output
cached.flush()
print(cached.stats()["hits"], cached.stats()["misses"])
"#;

fn python(folder: &Path) -> Option<(u64, u64)> {
    let Ok(python) = std::env::var("TENSORCASK_PYTHON") else {
        println!("\n*** TENSORCASK_PYTHON is not set: the exchange with Python was NOT run ***\n");
        return None;
    };
    // This process's libtorch is not that of Python.
    let mut command = Command::new(python);
    let output = command.env_remove("LD_LIBRARY_PATH").args(["-c", PROGRAM]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = printed.split_whitespace().map(|number| number.parse().unwrap()).collect();
    Some((numbers[0], numbers[1]))
}

fn linear(folder: &Path) -> CachedModule {
    let variables = nn::VarStore::new(Device::Cpu);
    let linear = nn::linear(variables.root(), 3, 2, nn::LinearConfig::default());
    tch::no_grad(|| {
        variables.root().get("weight").unwrap().copy_(&rows(0, 2, 3));
        variables.root().get("bias").unwrap().copy_(&Tensor::from_slice(&[0.5_f32, -0.5]));
    });
    let mut variables = variables;
    variables.freeze();
    let options = CacheOptions::in_folder(folder, "linear").check_structure(false);
    options.wrap_module(linear, &variables).unwrap()
}

fn call(module: &CachedModule) -> (u64, u64) {
    let x = rows(0, 4, 3);
    let expected = x.matmul(&rows(0, 2, 3).tr()) + Tensor::from_slice(&[0.5_f32, -0.5]);
    assert_eq!(expected.kind(), Kind::Float);
    assert_same(&module.forward_with_ids(&x, &[0_u64, 1, 2, 3]).unwrap().into_tensor().unwrap(), &expected);
    assert_same(&module.forward_with_ids(&x, &["a", "b", "c", "d"]).unwrap().into_tensor().unwrap(), &expected);
    assert_same(&module.forward(&x).unwrap().into_tensor().unwrap(), &expected);
    (module.counts().hits, module.counts().misses)
}

#[test]
fn what_python_computed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let Some(counts) = python(folder.path()) else { return };
    assert_eq!(counts, (0, 12));
    assert_eq!(call(&linear(folder.path())), (12, 0));
}

#[test]
fn python_finds_what_was_computed() {
    let folder = tempfile::tempdir().unwrap();
    let module = linear(folder.path());
    assert_eq!(call(&module), (0, 12));
    module.close().unwrap();
    if let Some(counts) = python(folder.path()) {
        assert_eq!(counts, (12, 0));
    }
}
