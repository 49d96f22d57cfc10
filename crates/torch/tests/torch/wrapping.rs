//! Every kind of computation can be wrapped, and the wrapper is a module.

use tch::nn::{self, Module, ModuleT};
use tch::{CModule, Device, Kind, Tensor};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{
    Argument, CacheOptions, CachedModule, Inputs, Output, argument_from_ivalue, output_from_ivalue,
};

use super::{assert_outputs, assert_same, doubling, rows};

fn options() -> CacheOptions {
    CacheOptions::in_memory().module_id("m")
}

#[test]
fn a_wrapper_is_a_layer() {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let backbone = nn::linear(variables.root(), 3, 4, Default::default());
    variables.freeze();
    let heads = nn::VarStore::new(Device::Cpu);
    let expected = backbone.forward(&rows(0, 5, 3));
    let cached = options().wrap_module(backbone, &variables).unwrap();
    let network = nn::seq().add(cached.clone()).add(nn::linear(heads.root(), 4, 2, Default::default()));
    for epoch in 0..3 {
        let logits = network.forward(&rows(0, 5, 3));
        assert_eq!(logits.size(), [5, 2]);
        // The head is trained; the backbone is only read.
        logits.sum(Kind::Float).backward();
        assert_eq!(cached.counts().misses, 5, "epoch {epoch}");
    }
    assert_same(&Module::forward(&cached, &rows(0, 5, 3)), &expected);
    assert_same(&cached.forward_t(&rows(0, 5, 3), true), &expected);
}

#[test]
fn training_mode_never_enters_the_cache() {
    #[derive(Debug)]
    struct Dropout;
    impl ModuleT for Dropout {
        fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
            x.dropout(0.5, train)
        }
    }
    let module = options().wrap_module_t(Dropout, tensorcask_torch::Variables::none()).unwrap();
    let x = rows(1, 4, 100);
    for _ in 0..2 {
        let trained = module.call(&x).training(true).run().unwrap().into_tensor().unwrap();
        assert!(!trained.equal(&x), "dropout was off");
        let evaluated = module.forward(&x).unwrap().into_tensor().unwrap();
        assert_same(&evaluated, &x);
    }
    let counts = module.counts();
    assert_eq!((counts.bypassed, counts.misses, counts.hits), (2, 4, 4));
}

#[test]
fn plain_functions() {
    // As with a decorator: the function is replaced under its name, and used as before.
    let embed = options().wrap_fn(|x: &Tensor| x.exp()).unwrap();
    let counts = embed.clone();
    let embed = embed.into_fn();
    for _ in 0..2 {
        assert_same(&embed(&rows(0, 2, 2)).unwrap(), &rows(0, 2, 2).exp());
    }
    assert_eq!(counts.counts().misses, 2);
    let pair = options().wrap_fn(|x: &Tensor| (x + 1, x * 2)).unwrap();
    let fallible = options().wrap_fn(|x: &Tensor| x.f_matmul(x)).unwrap();
    for _ in 0..2 {
        assert_outputs(&pair.forward(&rows(0, 2, 2)).unwrap(), &(rows(0, 2, 2) + 1, rows(0, 2, 2) * 2).output());
        assert_eq!(fallible.forward(&rows(0, 2, 2)).unwrap().into_tensor().unwrap().size(), [2, 2]);
    }
    assert!(fallible.forward(&rows(0, 2, 3)).is_err());
    assert!(pair.into_fn()(&rows(0, 2, 2)).unwrap_err().to_string().contains("a tuple, not a tensor"));
}

/// A traced TorchScript module: `x * weight + 1`.
fn script(weight: f32) -> CModule {
    let weight = Tensor::from_slice(&[weight]);
    let mut trace = |inputs: &[Tensor]| vec![&inputs[0] * &weight + 1];
    let mut module = CModule::create_by_tracing("m", "forward", &[rows(0, 2, 3)], &mut trace).unwrap();
    module.set_eval();
    module
}

#[test]
fn torchscript_modules() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |weight: f32| CacheOptions::in_folder(dir.path(), "script").wrap_script(script(weight)).unwrap();
    let check = |module: &CachedModule, weight: f64| {
        let output = module.forward(&rows(0, 2, 3)).unwrap().into_tensor().unwrap();
        assert_same(&output, &(rows(0, 2, 3) * weight + 1).to_kind(Kind::Float));
        module.counts().misses
    };
    assert_eq!((check(&wrap(2.0), 2.0), check(&wrap(2.0), 2.0)), (2, 0));
    // Constants, code and parameters count.
    assert_eq!(check(&wrap(3.0), 3.0), 2);
    assert!(
        wrap(2.0).forward(Inputs::from(&rows(0, 2, 3)).named("x", 1)).unwrap_err().to_string().contains("by position")
    );
}

#[test]
fn torchscript_values_pass_both_ways() {
    use tch::IValue;
    let output = output_from_ivalue(IValue::Tuple(vec![
        IValue::Tensor(rows(0, 1, 2)),
        IValue::GenericDict(vec![(IValue::String("a".into()), IValue::IntList(vec![1, 2]))]),
        IValue::TensorList(vec![rows(0, 1, 1)]),
        IValue::None,
        IValue::Bool(true),
        IValue::DoubleList(vec![0.5]),
        IValue::StringList(vec!["x".into()]),
        IValue::BoolList(vec![false]),
        IValue::GenericList(vec![IValue::Int(3), IValue::Double(1.5)]),
    ]));
    let expected = Output::Tuple(vec![
        rows(0, 1, 2).output(),
        Output::map([("a", Output::List(vec![1_i64.into(), 2_i64.into()]))]),
        vec![rows(0, 1, 1)].output(),
        Output::Null,
        true.into(),
        Output::List(vec![0.5.into()]),
        Output::List(vec!["x".into()]),
        Output::List(vec![false.into()]),
        Output::List(vec![3_i64.into(), 1.5.into()]),
    ]);
    assert_outputs(&output.unwrap(), &expected);
    assert!(output_from_ivalue(IValue::GenericDict(vec![(IValue::Int(1), IValue::None)])).is_err());
    assert!(argument_from_ivalue(IValue::IntList(vec![1])).is_err());
    assert!(matches!(argument_from_ivalue(IValue::Double(0.5)), Ok(Argument::Float(_))));
}

#[test]
fn instances_share_a_handle_in_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = || super::doubling_with(CacheOptions::in_folder(dir.path(), "m"));
    let ((one, seen_one), (two, seen_two)) = (wrap(), wrap());
    one.forward_with_ids(&rows(0, 2, 2), &[0_u64, 1]).unwrap();
    two.forward_with_ids(&rows(0, 3, 2), &[0_u64, 1, 2]).unwrap();
    one.forward_with_ids(&rows(0, 3, 2), &[0_u64, 1, 2]).unwrap();
    assert_eq!((seen_one.samples(), seen_two.samples()), (2, 1));
    // One handle is closed, the other still works.
    one.close().unwrap();
    two.forward_with_ids(&rows(0, 4, 2), &[0_u64, 1, 2, 3]).unwrap();
    assert_eq!((seen_two.samples(), two.len().unwrap()), (2, 4));
}

#[test]
fn epochs_are_summed_up() {
    let (module, _) = doubling();
    module.forward_with_ids(&rows(0, 4, 2), &[0_u64, 1, 2, 3]).unwrap();
    let first = module.end_epoch();
    assert_eq!((first.misses, first.hits, first.put_bytes), (4, 0, 4 * 2 * 4));
    assert!(first.compute_s > 0.0);
    module.forward_with_ids(&rows(0, 4, 2), &[0_u64, 1, 2, 3]).unwrap();
    let second = module.end_epoch();
    assert_eq!((second.misses, second.hits, second.read_bytes), (0, 4, 4 * 2 * 4));
    assert!(second.saved_s > 0.0 && second.compute_s == 0.0);
    assert!(second.to_string().starts_with("4 hits, 0 misses (100.0 % hits)"), "{second}");
    assert!(format!("{module:?}").contains("CachedModule"));
}

const LOGS: &str = "TENSORCASK_TORCH_LOGS";

/// Not a test: a process has only one subscriber, so this runs in a child.
#[test]
fn logging_process() {
    if std::env::var_os(LOGS).is_none() {
        return;
    }
    assert!(tensorcask_torch::init_logging().unwrap());
    assert!(!tensorcask_torch::init_logging().unwrap());
    let (module, _) = doubling();
    for _ in 0..2 {
        module.forward(&rows(0, 3, 2)).unwrap();
        module.end_epoch();
    }
}

#[test]
fn logs_go_where_the_environment_says() {
    let dir = tempfile::tempdir().unwrap();
    let logged = |level: &str| {
        let file = dir.path().join(level);
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wrapping::logging_process", "--test-threads=1"])
            .envs([(LOGS, "yes"), ("TENSORCASK_LOG", level)])
            .env("TENSORCASK_LOG_FILE", &file)
            .output()
            .unwrap();
        (child.status.success(), std::fs::read_to_string(file).unwrap_or_default())
    };
    let (done, lines) = logged("info");
    assert!(
        done && lines.contains("epoch 1: 0 hits, 3 misses") && lines.contains("epoch 2: 3 hits, 0 misses"),
        "{lines}"
    );
    assert_eq!(logged("error"), (true, String::new()));
    assert!(!logged("tensorcask=loud").0);
}
