//! Every operation of libtorch that writes to a variable or replaces it.

use tch::{Device, Kind, Tensor};

use super::watching::{among, noticed};

const F: (Kind, Device) = (Kind::Float, Device::Cpu);

type Op = (&'static str, Box<dyn Fn(&mut Tensor)>);

fn fresh() -> Tensor {
    Tensor::arange(64, F).reshape([8, 8]) + 0.5
}

fn ops() -> Vec<Op> {
    fn op(name: &'static str, f: impl Fn(&mut Tensor) + 'static) -> Op {
        (name, Box::new(f))
    }
    let other = || Tensor::full([8, 8], 7.0, F);
    vec![
        op("fill_", |w| drop(w.fill_(3.0))),
        op("add_", |w| drop(w.g_add_scalar_(3.0))),
        op("copy_", move |w| w.copy_(&other())),
        op("zero_", |w| drop(w.zero_())),
        op("normal_", |w| drop(w.normal_(0.0, 1.0))),
        op("uniform_", |w| drop(w.uniform_(0.0, 1.0))),
        op("random_", |w| drop(w.random_())),
        op("narrow fill", |w| drop(w.narrow(0, 0, 1).fill_(9.0))),
        op("view fill", |w| drop(w.view(-1).get(0).fill_(9.0))),
        op("detach fill", |w| drop(w.detach().get(0).fill_(9.0))),
        op("transposed fill", |w| drop(w.tr().get(1).fill_(9.0))),
        op("diagonal fill", |w| drop(w.diagonal(0, 0, 1).fill_(9.0))),
        op("index_put_", |w| drop(w.index_put_(&[Some(Tensor::from_slice(&[1_i64]))], &Tensor::from(9_f32), false))),
        op("index_fill_", |w| drop(w.index_fill_(0, &Tensor::from_slice(&[1_i64]), 9.0))),
        op("masked_fill_", |w| drop(w.masked_fill_(&w.gt(20.0), 9.0))),
        op("scatter_", |w| {
            drop(w.scatter_(0, &Tensor::zeros([1, 8], (Kind::Int64, Device::Cpu)), &Tensor::ones([1, 8], F)))
        }),
        op("add_out", |w| drop(Tensor::ones([8, 8], F).add_out(w, &Tensor::ones([8, 8], F)))),
        op("mul_out", |w| drop(Tensor::ones([8, 8], F).mul_out(w, &Tensor::ones([8, 8], F)))),
        op("set_data other storage", move |w| w.set_data(&other())),
        op("set_data other kind", move |w| w.set_data(&other().to_kind(Kind::Double))),
        op("set_source_tensor_", move |w| drop(w.set_source_tensor_(&other()))),
        op("set_source_tensor_storage_offset_", |w| {
            let s = w.shallow_clone();
            drop(w.set_source_tensor_storage_offset_(&s.detach(), 8, [4, 8], [8, 1]))
        }),
        op("set_", |w| drop(w.set_())),
        op("t_", |w| drop(w.t_())),
        op("transpose_", |w| drop(w.transpose_(0, 1))),
        op("unsqueeze_", |w| drop(w.unsqueeze_(0))),
        op("as_strided_", |w| drop(w.as_strided_([4, 4], [8, 1], 3))),
        op("resize_ smaller", |w| drop(w.resize_([4, 8]))),
        op("resize_ larger", |w| drop(w.resize_([80, 80]))),
        op("resize_as_", |w| drop(w.resize_as_(&Tensor::ones([3, 3], F)))),
        op("embedding_renorm_", |w| drop(w.embedding_renorm_(&Tensor::from_slice(&[1_i64, 2]), 0.5, 2.0))),
        op("set_data same storage, strides", |w| {
            let t = w.tr();
            w.set_data(&t)
        }),
        op("set_data same storage, offset", |w| {
            let t = w.narrow(0, 4, 4);
            w.set_data(&t)
        }),
        op("set_data same storage, shape", |w| {
            let t = w.view([4, 16]);
            w.set_data(&t)
        }),
        op("set_data same storage, kind", |w| {
            let t = w.view_dtype(Kind::Int);
            w.set_data(&t)
        }),
        op("set_data neg", |w| {
            let t = w.internal_neg_view();
            w.set_data(&t)
        }),
        op("instance_norm mean", |w| {
            let mean = w.view(-1);
            let var = Tensor::ones([64], F);
            drop(Tensor::randn([2, 64, 5], F).instance_norm(
                None::<&Tensor>,
                None,
                Some(&mean),
                Some(&var),
                true,
                0.1,
                1e-5,
                false,
            ))
        }),
        op("fused_moving_avg_obs_fake_quant", |w| {
            let (min, max) = (w.view(-1).narrow(0, 0, 1), w.view(-1).narrow(0, 1, 1));
            let one = || Tensor::ones([1], F);
            let on = Tensor::ones([1], (Kind::Int64, Device::Cpu));
            let zp = Tensor::zeros([1], (Kind::Int, Device::Cpu));
            drop(Tensor::randn([2, 64], F).fused_moving_avg_obs_fake_quant(
                &on,
                &on,
                &min,
                &max,
                &one(),
                &zp,
                0.5,
                0,
                255,
                0,
                false,
                false,
            ))
        }),
        op("amp_update_scale growth_tracker", |w| {
            let tracker = w.view_dtype(Kind::Int).view(-1).get(0).view([1]);
            let mut scale = Tensor::full([1], 2.0, F);
            drop(scale.internal_amp_update_scale_(&tracker, &Tensor::zeros([1], F), 2.0, 0.5, 100))
        }),
        op("native_batch_norm_out saved", |w| {
            let x = Tensor::randn([4, 8], F);
            let (mean, inv) = (w.get(0), w.get(1));
            let out = Tensor::zeros([4, 8], F);
            drop(x.native_batch_norm_out(&out, &mean, &inv, None::<&Tensor>, None, None, None, true, 0.1, 1e-5))
        }),
        op("batch_norm functional mean", |w| {
            let mean = w.get(4);
            let var = Tensor::ones([8], F);
            drop(Tensor::randn([4, 8], F).batch_norm(
                None::<&Tensor>,
                None,
                Some(&mean),
                Some(&var),
                true,
                0.1,
                1e-5,
                false,
            ))
        }),
        op("native_batch_norm_legit mean", |w| {
            let mean = w.get(0);
            let var = Tensor::ones([8], F);
            drop(Tensor::randn([4, 8], F).internal_native_batch_norm_legit(
                None::<&Tensor>,
                None,
                &mean,
                &var,
                true,
                0.1,
                1e-5,
            ))
        }),
        op("batch_norm_update_stats", |w| {
            let mean = w.get(0);
            let var = Tensor::ones([8], F);
            drop(Tensor::randn([4, 8], F).batch_norm_update_stats(Some(&mean), Some(&var), 0.1))
        }),
        op("data fill_", |w| drop(w.data().fill_(3.0))),
    ]
}

/// Of up to 64 variables, each change is detected at once.
#[test]
fn any_change_of_few() {
    for pad in [0, 60] {
        for (name, change) in ops() {
            let mut w = fresh();
            let module = among(&w, pad);
            let _guard = tch::no_grad_guard();
            change(&mut w);
            assert!(noticed(&module), "{name}");
            assert!(!noticed(&module), "{name} again");
        }
    }
}

/// Of many variables, counted writes and replacements are detected at once, and other changes when it is the variable's
/// turn.
#[test]
fn any_change_of_many() {
    const LATER: [&str; 12] = [
        "set_data same storage, strides",
        "set_data same storage, offset",
        "set_data same storage, shape",
        "set_data same storage, kind",
        "set_data neg",
        "fused_moving_avg_obs_fake_quant",
        "amp_update_scale growth_tracker",
        "batch_norm functional mean",
        "native_batch_norm_legit mean",
        "native_batch_norm_out saved",
        "batch_norm_update_stats",
        "data fill_",
    ];
    for (name, change) in ops() {
        let mut w = fresh();
        let module = among(&w, 300);
        let _guard = tch::no_grad_guard();
        change(&mut w);
        let calls = if LATER.contains(&name) { 301 } else { 1 };
        assert!((0..calls).any(|_| noticed(&module)), "{name}");
        assert!(!noticed(&module), "{name} again");
        // The caller can report a write that is not detected.
        module.weights_changed();
        assert!(!noticed(&module), "{name}: the weights are the same");
    }
}
