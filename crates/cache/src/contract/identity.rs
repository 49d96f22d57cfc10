//! How modules are told apart.

use super::{doubling, folder, ids, one, refused, rows};
use crate::layer::options::Weights;
use crate::layer::{Adapter, CacheOptions};
use crate::values::output::Output;

/// Modules that differ in version, argument, instance, dtype or weights do not share outputs.
pub fn other_modules_never_meet<F: Adapter>() {
    let folder = folder();
    let options = || CacheOptions::<F>::in_folder(folder.path(), "module").version("1");
    let call = |options: CacheOptions<F>| {
        let (module, seen) = doubling(options);
        module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &ids(0, 2)).unwrap();
        module.close().unwrap();
        seen.samples()
    };
    let all = || {
        vec![
            options(),
            options().version("2"),
            options().argument("layer", 3),
            options().argument("layer", 4),
            options().instance("left"),
            options().cache_dtype(tensorcask::Dtype::F16),
            options().fingerprint("weights", b"1"),
            options().fingerprint("weights", b"2"),
        ]
    };
    assert!(all().into_iter().all(|options| call(options) == 2));
    assert!(all().into_iter().all(|options| call(options) == 0));
    // Weights that are ignored.
    let ignoring = |weights: &[u8]| call(options().fingerprint("weights", weights).weights(Weights::Ignore));
    assert_eq!((ignoring(b"3"), ignoring(b"4")), (2, 0));
    let (module, _) = doubling(options().fingerprint("weights", b"5").weights(Weights::Ignore));
    assert!(module.warnings()[0].contains("outputs were computed with other weights"), "{:?}", module.warnings());
}

/// Closures cannot be told apart, so a folder requires a version.
pub fn a_version_is_asked_for_in_a_folder<F: Adapter>() {
    let folder = folder();
    let wrap = |options: CacheOptions<F>| options.wrap_fn(|x: &F::Tensor| Output::<F>::Tensor(F::share(x)));
    refused(wrap(CacheOptions::in_folder(folder.path(), "module")), "no version was given");
    refused(wrap(CacheOptions::in_memory()), "no module id was given");
    assert!(wrap(CacheOptions::in_memory().module_id("module")).is_ok());
}

/// A miss is explained by the parts of the identity that differ.
pub fn why_a_sample_is_missing<F: Adapter>() {
    let folder = folder();
    let options = || CacheOptions::<F>::in_folder(folder.path(), "module");
    let (former, _) = doubling(options().version("1"));
    former.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &["a", "b"]).unwrap();
    former.forward(one::<F>(&rows::<F>(0, 1, 1))).unwrap();
    former.close().unwrap();
    let (module, _) = doubling(options().version("2"));
    let why = module.why_miss(&["a"]).unwrap();
    assert_eq!(why.to_string(), "it is kept for another identity: version: \"2\" here, \"1\" there");
    assert_eq!(module.why_miss_content(one::<F>(&rows::<F>(0, 1, 1))).unwrap(), why);
    assert_eq!(module.why_miss(&["c"]).unwrap().to_string(), "it was never kept under this module id");
    module.forward_with_ids(one::<F>(&rows::<F>(0, 1, 1)), &["a"]).unwrap();
    assert!(module.why_miss(&["a"]).unwrap().kept);
    refused(module.why_miss(&["a", "b"]), "2 samples were asked about");
}

/// Identities of former versions can be listed and removed.
pub fn former_identities_are_listed_and_pruned<F: Adapter>() {
    let folder = folder();
    let options = |version: &str| CacheOptions::<F>::in_folder(folder.path(), "module").version(version);
    for version in ["1", "2"] {
        let (module, _) = doubling(options(version));
        module.forward_with_ids(one::<F>(&rows::<F>(0, 2, 1)), &ids(0, 2)).unwrap();
        module.close().unwrap();
    }
    let (module, _) = doubling(options("3"));
    module.forward_with_ids(one::<F>(&rows::<F>(0, 1, 1)), &ids(0, 1)).unwrap();
    module.flush().unwrap();
    let listed = module.identities().unwrap();
    assert_eq!(listed.len(), 3);
    let differs =
        |text: &str| listed.iter().any(|identity| identity.differences.iter().any(|line| line.contains(text)));
    assert!(differs("version: \"3\" here, \"1\" there") && differs("\"2\" there"), "{listed:?}");
    let pruned = module.prune_identities(|_| true).unwrap();
    assert_eq!((pruned.removed.len(), pruned.kept.len()), (2, 1));
    assert_eq!(options("3").identities().unwrap().len(), 1);
    assert_eq!(module.len().unwrap(), 1);
}
