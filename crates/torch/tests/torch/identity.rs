//! Different modules do not share outputs.

use tch::{Device, Kind, Tensor, nn};
use tensorcask_torch::OutputLike as _;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Compute, Inputs, Output, Settings, Torch, Variables, Weights};

use super::{assert_same, doubling_with, rows};

/// A frozen linear layer whose weights are derived from the seed.
fn linear(seed: f64) -> (nn::Linear, nn::VarStore) {
    let mut variables = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(variables.root() / "encoder", 3, 2, Default::default());
    variables.freeze();
    let _guard = tch::no_grad_guard();
    for (_, mut tensor) in variables.variables() {
        let numbers = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu)) + seed;
        tensor.copy_(&numbers.reshape(tensor.size()));
    }
    (layer, variables)
}

fn misses(module: &CachedModule) -> u64 {
    let before = module.counts().misses;
    module.forward_with_ids(&rows(0, 2, 3), &["a", "b"]).unwrap();
    module.counts().misses - before
}

#[test]
fn other_weights_are_another_identity() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |seed: f64| {
        let (layer, variables) = linear(seed);
        CacheOptions::in_folder(dir.path(), "linear").wrap_module(layer, &variables).unwrap()
    };
    assert_eq!((misses(&wrap(1.0)), misses(&wrap(1.0))), (2, 0));
    assert_eq!((misses(&wrap(2.0)), misses(&wrap(2.0)), misses(&wrap(1.0))), (2, 0, 0));
    // The part that differs is named.
    let third = wrap(3.0);
    let why = third.why_miss(&["a"]).unwrap();
    assert!(!why.kept);
    assert_eq!(why.elsewhere.len(), 2);
    let lines = &why.elsewhere[0].differences;
    assert!(lines.iter().any(|line| line.starts_with("weights encoder.weight: Float [2, 3] ")), "{lines:?}");
    assert_eq!(third.why_miss(&["never"]).unwrap().to_string(), "it was never kept under this module id");
    misses(&third);
    assert!(third.why_miss(&["a"]).unwrap().kept);
}

#[test]
fn weights_that_change_later_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (layer, variables) = linear(1.0);
    let weight = layer.ws.shallow_clone();
    let module = CacheOptions::in_folder(dir.path(), "linear").wrap_module(layer, &variables).unwrap();
    assert_eq!((misses(&module), misses(&module)), (2, 0));
    let before = module.forward_with_ids(&rows(0, 2, 3), &["a", "b"]).unwrap().into_tensor().unwrap();
    {
        let _guard = tch::no_grad_guard();
        weight.shallow_clone().copy_(&(&weight * 2.0));
    }
    assert_eq!((misses(&module), misses(&module)), (2, 0));
    let after = module.forward_with_ids(&rows(0, 2, 3), &["a", "b"]).unwrap().into_tensor().unwrap();
    assert!(!before.equal(&after));
    {
        let _guard = tch::no_grad_guard();
        weight.shallow_clone().copy_(&(&weight / 2.0));
    }
    // With the old weights, the old outputs are found again.
    assert_eq!(misses(&module), 0);
    assert_same(&module.forward_with_ids(&rows(0, 2, 3), &["a", "b"]).unwrap().into_tensor().unwrap(), &before);
}

#[test]
fn state_passes_through() {
    let dir = tempfile::tempdir().unwrap();
    for ending in ["ot", "safetensors"] {
        let path = dir.path().join(format!("weights.{ending}"));
        let wrap = |seed: f64| {
            let (layer, variables) = linear(seed);
            let options = CacheOptions::in_folder(dir.path(), ending);
            (options.wrap_module(layer, &variables).unwrap(), variables)
        };
        let (module, _variables) = wrap(1.0);
        misses(&module);
        module.save(&path).unwrap();
        // The file has only the variables of the wrapped module, and a VarStore can read it.
        let (_, mut plain) = linear(9.0);
        plain.load(&path).unwrap();
        let mut names: Vec<String> = plain.variables().into_keys().collect();
        names.sort();
        assert_eq!(names, ["encoder.bias", "encoder.weight"]);

        let (other, variables) = wrap(2.0);
        assert_eq!(misses(&other), 2);
        other.load(&path).unwrap();
        assert_eq!(misses(&other), 0);
        assert_same(&variables.variables()["encoder.weight"], &plain.variables()["encoder.weight"]);

        // The file of another module changes nothing.
        let mut foreign = nn::VarStore::new(Device::Cpu);
        let _layer = nn::linear(foreign.root() / "encoder", 3, 5, Default::default());
        foreign.freeze();
        let wrong = dir.path().join(format!("wrong.{ending}"));
        foreign.save(&wrong).unwrap();
        assert!(other.load(&wrong).unwrap_err().to_string().contains("expected encoder.bias of shape [2], found [5]"));
        assert_eq!(misses(&other), 0);
        assert!(other.load(dir.path().join("nothing")).is_err());
    }
}

#[test]
fn versions_arguments_and_instances_count() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    let all = [
        options(),
        options().version("2"),
        options().argument("depth", 12),
        options().argument("depth", 24),
        options().argument("width", 12),
        options().instance("left"),
        options().instance("right"),
    ];
    for round in 0..2 {
        for options in &all {
            assert_eq!(misses(&doubling_with(options.clone()).0), if round == 0 { 2 } else { 0 });
        }
    }
    let (module, _) = doubling_with(options().version("3").argument("depth", 12));
    let why = module.why_miss(&["b"]).unwrap();
    let closest = why.elsewhere.iter().find(|other| other.differences.len() == 1).unwrap();
    assert_eq!(closest.differences, ["version: \"3\" here, \"1\" there"]);
    assert_eq!(why.elsewhere.len(), 7);
    assert!(why.to_string().contains("argument depth: 12 here, 24 there"));
}

#[test]
fn why_content_misses() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m").version("1"));
    first.forward(&rows(0, 1, 3)).unwrap();
    let (second, _) = doubling_with(CacheOptions::in_folder(dir.path(), "m").version("2"));
    let why = second.why_miss_content(&rows(0, 1, 3)).unwrap();
    assert_eq!(why.to_string(), "it is kept for another identity: version: \"2\" here, \"1\" there");
    assert!(second.why_miss_content(&rows(0, 2, 3)).unwrap_err().to_string().contains("ask about one"));
    assert!(second.why_miss_content(&rows(1, 1, 3)).unwrap().elsewhere.is_empty());
}

#[test]
fn weights_may_be_ignored_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let wrap = |seed: f64, weights: Weights| {
        let (layer, variables) = linear(seed);
        CacheOptions::in_folder(dir.path(), "m").weights(weights).wrap_module(layer, &variables).unwrap()
    };
    let first = wrap(1.0, Weights::Ignore);
    assert_eq!((misses(&first), first.warnings().len()), (2, 0));
    drop(first);
    let second = wrap(2.0, Weights::Ignore);
    assert_eq!(misses(&second), 0);
    assert!(second.warnings()[0].contains("were computed with other weights"), "{:?}", second.warnings());
    let checked = wrap(2.0, Weights::Check);
    assert_eq!((misses(&checked), checked.warnings().len()), (2, 0));
}

#[test]
fn models_share_what_they_share() {
    // Two parent models with the same frozen backbone, and k folds of one data set.
    let dir = tempfile::tempdir().unwrap();
    let parent = || {
        let (layer, variables) = linear(1.0);
        CacheOptions::in_folder(dir.path(), "backbone").wrap_module(layer, &variables).unwrap()
    };
    let (left, right) = (parent(), parent());
    assert_eq!((misses(&left), misses(&right)), (2, 0));
    let all: Vec<u64> = (0..12).collect();
    let mut computed = Vec::new();
    for fold in 0..4 {
        let model = parent();
        let train: Vec<u64> = all.iter().copied().filter(|id| id % 4 != fold).collect();
        let parts: Vec<Tensor> = train.iter().map(|&id| rows(id as i64, 1, 3)).collect();
        model.forward_with_ids(&Tensor::cat(&parts, 0), &train).unwrap();
        computed.push(model.counts().misses);
    }
    assert_eq!(computed, [9, 3, 0, 0]);
}

#[test]
fn a_type_of_ones_own_brings_its_settings() {
    struct Scale {
        factor: f64,
    }
    impl Compute<Torch> for Scale {
        fn compute(&self, inputs: &Inputs) -> tensorcask_torch::Result<Output> {
            Ok((inputs.tensor(0)? * self.factor).output())
        }
        fn settings(&self) -> Settings {
            Settings {
                module_id: Some("scale".into()),
                version: Some("1".into()),
                arguments: [("factor".to_owned(), self.factor.to_string())].into(),
                ..Settings::default()
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::new(tensorcask_torch::Place::Folder(dir.path().to_path_buf()));
    for (factor, expected) in [(2.0, 2), (3.0, 2), (2.0, 0)] {
        let module = options().wrap(Scale { factor }).unwrap();
        assert_eq!(misses(&module), expected);
        assert!(module.folder().unwrap().starts_with(dir.path().canonicalize().unwrap().join("scale")));
    }
    // Options of the caller take precedence.
    assert_eq!(misses(&options().version("2").wrap(Scale { factor: 2.0 }).unwrap()), 2);
    assert_eq!(misses(&options().module_id("other").wrap(Scale { factor: 2.0 }).unwrap()), 2);
}

#[test]
fn trainable_modules_are_refused() {
    let variables = nn::VarStore::new(Device::Cpu);
    let layer = || nn::linear(variables.root(), 3, 2, Default::default());
    let options = || CacheOptions::in_memory().module_id("m");
    let refused = options().wrap_module(layer(), &variables).unwrap_err();
    assert!(matches!(&refused, tensorcask_torch::Error::Trainable { count: 2, .. }), "{refused}");
    assert!(options().enforce_stateless(false).wrap_module(layer(), &variables).is_ok());
    // A module that is unfrozen after wrapping is refused from then on, in evaluation and in training.
    let (layer, mut variables) = linear(1.0);
    let module = options().wrap_module_t(layer, &variables).unwrap();
    misses(&module);
    variables.unfreeze();
    for training in [false, true] {
        let refused = module.call(&rows(0, 2, 3)).training(training).run().unwrap_err();
        assert!(matches!(refused, tensorcask_torch::Error::Trainable { .. }));
    }
    variables.freeze();
    assert_eq!(misses(&module), 0);
}

#[test]
fn variables_of_any_source() {
    let (_, variables) = linear(1.0);
    let named = Variables::from(&variables);
    assert_eq!(named.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["encoder.bias", "encoder.weight"]);
    assert_eq!((named.len(), named.is_empty(), Variables::none().is_empty()), (2, false, true));
    assert_eq!(named.get("encoder.bias").unwrap().size(), [2]);
    let dir = tempfile::tempdir().unwrap();
    let wrap = |seed: f64| {
        let options = CacheOptions::in_folder(dir.path(), "m").version("1");
        let (layer, variables) = linear(seed);
        options
            .wrap_inputs_fn_with(&variables, move |inputs: &Inputs| Ok(nn::Module::forward(&layer, inputs.tensor(0)?)))
    };
    assert_eq!((misses(&wrap(1.0).unwrap()), misses(&wrap(1.0).unwrap()), misses(&wrap(2.0).unwrap())), (2, 0, 2));
}

#[test]
fn identities_are_listed_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let options = || CacheOptions::in_folder(dir.path(), "m");
    assert_eq!(options().identities().unwrap(), []);
    for version in ["1", "2", "3"] {
        let (module, _) = doubling_with(options().version(version));
        misses(&module);
        module.forward_with_ids(&rows(0, 1, 3), &[7_u64]).unwrap();
        module.close().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let all = options().identities().unwrap();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|identity| identity.rows == Some(3) && identity.bytes > 100), "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].last_used >= pair[1].last_used));
    assert!(all[0].differences.is_empty());
    assert_eq!(all[2].differences, ["version: \"3\" here, \"1\" there"]);

    // Identities that are open stay, and so do those with foreign files.
    let (module, seen) = doubling_with(options().version("2"));
    misses(&module);
    let stranger = all[2].folder.join("notes.txt");
    std::fs::write(&stranger, "mine").unwrap();
    assert_eq!(module.identities().unwrap().iter().filter(|identity| identity.differences.is_empty()).count(), 1);
    let pruned = module.prune_identities(|_| true).unwrap();
    assert_eq!(pruned.removed.iter().map(|identity| &identity.id).collect::<Vec<_>>(), [&all[0].id]);
    let mut reasons: Vec<String> = pruned.kept.iter().map(|(_, why)| why.to_string()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["a handle of this process has it open", "notes.txt in it is no file of tensorcask"]);
    assert!(!all[0].folder.exists() && stranger.exists());
    assert_eq!((misses(&module), seen.samples()), (0, 0));
    std::fs::remove_file(stranger).unwrap();
    let pruned = options().prune_identities(|identity| !identity.differences.is_empty()).unwrap();
    assert_eq!((pruned.removed.len(), pruned.kept.len()), (1, 0));
    assert_eq!(options().identities().unwrap().len(), 1);
    // A writer of another process.
    let folder = module.folder().unwrap();
    module.close().unwrap();
    let writer = tensorcask::Store::open(&folder, "str").unwrap();
    assert_eq!(options().prune_identities(|_| true).unwrap().kept[0].1.to_string(), "a writer has it open");
    writer.close().unwrap();
    drop(writer);
    assert_eq!(options().prune_identities(|_| true).unwrap().removed.len(), 1);
    assert_eq!(misses(&doubling_with(options().version("2")).0), 2);
    assert!(CacheOptions::in_memory().identities().is_err());
}

#[test]
fn identities_are_listed_and_pruned_without_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("m");
    let wrap =
        |version: &str| doubling_with(CacheOptions::in_folder(dir.path(), "m").disk_bytes(1 << 20).version(version)).0;
    for version in ["1", "2"] {
        let module = wrap(version);
        misses(&module);
        module.forward(&rows(0, 1, 3)).unwrap();
        module.close().unwrap();
    }
    let listed = tensorcask_cache::identities::list(&folder).unwrap();
    assert_eq!(listed, CacheOptions::in_folder(dir.path(), "m").identities().unwrap());
    assert!(listed.iter().all(|identity| identity.record.as_ref().unwrap().contains("\"version\"")), "{listed:?}");
    // A handle of this process has the identity open, but none of its stores.
    let module = wrap("1");
    let ours = module.folder().unwrap();
    for dry_run in [true, false] {
        let pruned = tensorcask_cache::identities::prune(&folder, dry_run, |_| true).unwrap();
        assert_eq!((pruned.removed.len(), pruned.kept.len()), (1, 1));
        assert_eq!(pruned.kept[0].1.to_string(), "a handle of this process has it open");
        assert_eq!(pruned.freed_bytes(), listed.iter().find(|identity| !ours.ends_with(&identity.id)).unwrap().bytes);
        assert_eq!(listed.iter().filter(|identity| identity.folder.exists()).count(), if dry_run { 2 } else { 1 });
    }
    assert_eq!(misses(&module), 0);
    // The remains of an interrupted removal are not an identity, and the next removal deletes them.
    module.close().unwrap();
    std::fs::rename(&ours, ours.with_extension("pruned")).unwrap();
    let other = wrap("3");
    assert!(other.why_miss(&["a"]).unwrap().elsewhere.is_empty());
    assert_eq!(tensorcask_cache::identities::interrupted(&folder).unwrap().len(), 1);
    assert_eq!(other.prune_identities(|_| false).unwrap().finished.len(), 1);
    assert_eq!((other.identities().unwrap().len(), std::fs::read_dir(&folder).unwrap().count()), (1, 1));
}
