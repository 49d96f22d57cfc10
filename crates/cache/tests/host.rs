//! The contract of the caching layer, over host tensors: `cargo test -p tensorcask-cache --features contract`.

use tensorcask_cache::host::Host;

tensorcask_cache::contract!(Host);

#[test]
fn the_format_has_the_test_vectors() {
    let format = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../FORMAT.md")).unwrap();
    let keys = tensorcask_cache::contract::keys::KEYS.map(|(_, key)| key);
    for vector in keys.into_iter().chain([tensorcask_cache::contract::keys::IDENTITY]) {
        assert!(format.contains(&format!("`{vector}`")), "{vector}");
    }
}
