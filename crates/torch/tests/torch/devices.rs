//! Results are returned on the requested device.

use tch::{Cuda, Device, Kind, Tensor};
use tensorcask_torch::CacheOptions;
use tensorcask_torch::WrapModules as _;

use super::{assert_same, doubling_with, ids, rows};

#[test]
fn results_are_on_the_inputs_device_or_where_they_are_mapped() {
    let (module, _) = doubling_with(CacheOptions::in_memory().module_id("m").map_location(Device::Cpu));
    for _ in 0..2 {
        let output = module.forward_with_ids(&rows(0, 4, 2), &ids(0, 4)).unwrap().into_tensor().unwrap();
        assert_eq!(output.device(), Device::Cpu);
    }
}

#[test]
fn on_cuda() {
    if !Cuda::is_available() {
        println!("NOT TESTED: there is no CUDA device, so nothing of the torch layer was run on one");
        return;
    }
    let device = Device::Cuda(0);
    let x = rows(0, 64, 32).to_device(device);
    let expected = &x * 2 + 1;
    let plain = || CacheOptions::temporary().module_id("m");
    for options in [plain(), plain().pinned(true), plain().memory_bytes(1 << 20).memory_device(device)] {
        let (module, seen) = doubling_with(options);
        for known in [16, 64, 64] {
            let output = module.forward_with_ids(&x.narrow(0, 0, known), &ids(0, known as u64)).unwrap();
            let output = output.into_tensor().unwrap();
            assert_eq!(output.device(), device);
            assert_same(&output.to_device(Device::Cpu), &expected.narrow(0, 0, known).to_device(Device::Cpu));
        }
        // By content, the same bytes on another device are the same sample.
        module.forward(&x).unwrap();
        module.forward(&x.to_device(Device::Cpu)).unwrap();
        assert_eq!(seen.samples(), 128);
    }
    let (module, _) = doubling_with(plain().map_location(Device::Cpu).pinned(true));
    for _ in 0..2 {
        let output = module.forward_with_ids(&x, &ids(0, 64)).unwrap().into_tensor().unwrap();
        assert_eq!((output.device(), output.kind()), (Device::Cpu, Kind::Float));
        assert!(Tensor::is_pinned(&output, device));
        assert_same(&output, &expected.to_device(Device::Cpu));
    }
}
