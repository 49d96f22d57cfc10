use super::*;

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn put(storage: &MemoryStorage, path: &str, parts: [&[u8]; 2]) -> Box<dyn AppendFile> {
    let mut file = storage.create(p(path)).unwrap();
    file.append(&[IoSlice::new(parts[0])]).unwrap();
    file.sync(Durability::SyncData).unwrap();
    file.append(&[IoSlice::new(parts[1])]).unwrap();
    file.sync(Durability::Buffered).unwrap();
    file
}

fn names(storage: &MemoryStorage, path: &str) -> Vec<String> {
    storage.list(p(path)).unwrap().into_iter().map(|entry| entry.name).collect()
}

#[test]
fn power_loss_keeps_synced_bytes_under_synced_names() {
    let storage = MemoryStorage::new();
    storage.create_dir(p("d")).unwrap();
    drop(put(&storage, "d/a", [b"safe", b"lost"]));
    storage.sync_dir(p("d")).unwrap();
    assert!(names(&storage.power_loss(), "").is_empty(), "the folder's own name was not synced");
    storage.sync_dir(p("")).unwrap();
    drop(put(&storage, "d/new", [b"x", b"y"]));
    let after = storage.power_loss();
    assert_eq!(names(&after, "d"), ["a"]);
    assert_eq!(after.read("d/a").unwrap(), &b"safe"[..]);
    let after = storage.power_loss_keeping(|path, synced, len| {
        assert_eq!((path, synced, len), (p("d/a"), 4, 8));
        6
    });
    assert_eq!(after.read("d/a").unwrap(), &b"safelo"[..]);
    assert_eq!(after.power_loss().read("d/a").unwrap().len(), 6, "what survived is on disk");
    assert_eq!(storage.read("d/a").unwrap().len(), 8, "the former tree goes on");
}

#[test]
fn power_loss_undoes_renames_and_removals_that_were_not_synced() {
    let storage = MemoryStorage::new();
    storage.write("a", b"a").unwrap();
    storage.write("b", b"b").unwrap();
    storage.write("c", b"c").unwrap();
    storage.rename(p("a"), p("b")).unwrap();
    storage.remove(p("c")).unwrap();
    let after = storage.power_loss();
    assert_eq!(names(&after, ""), ["a", "b", "c"]);
    assert_eq!(after.read("b").unwrap(), &b"b"[..]);
    storage.sync_dir(p("")).unwrap();
    let after = storage.power_loss();
    assert_eq!(names(&after, ""), ["b"]);
    assert_eq!(after.read("b").unwrap(), &b"a"[..]);
}

#[test]
fn power_loss_releases_locks() {
    let storage = MemoryStorage::new();
    let _held = storage.try_lock(p("lock")).unwrap().unwrap();
    assert!(storage.clone().try_lock(p("lock")).unwrap().is_none());
    assert!(storage.power_loss().try_lock(p("lock")).unwrap().is_some());
}

#[test]
fn reads_copy_only_across_appends() {
    let storage = MemoryStorage::new();
    let file = put(&storage, "f", [b"abcd", b"efgh"]);
    let read = storage.open(p("f"), 1).unwrap();
    let (one, two) = (read.bytes(1, 3).unwrap(), read.bytes(1, 2).unwrap());
    assert_eq!(one.as_ptr(), two.as_ptr());
    assert_eq!(read.bytes(2, 4).unwrap(), &b"cdef"[..]);
    drop(file);
    let read = storage.open(p("f"), 1).unwrap();
    assert_eq!(read.bytes(2, 4).unwrap().as_ptr(), read.bytes(2, 6).unwrap().as_ptr(), "one chunk now");
    assert_eq!(one, &b"bcd"[..]);
}

#[test]
fn damage_on_request() {
    let storage = MemoryStorage::new();
    storage.write("d/f", b"abc").unwrap();
    let read = storage.open(p("d/f"), 0).unwrap();
    let before = read.bytes(0, 3).unwrap();
    storage.corrupt("d/f", 1, 0xFF).unwrap();
    assert_eq!(read.bytes(0, 3).unwrap(), [b'a', !b'b', b'c'][..]);
    assert_eq!(before, &b"abc"[..]);
    assert!(storage.corrupt("d/f", 3, 1).unwrap_err().is_corrupt());
    storage.truncate("d/f", 2).unwrap();
    assert!(read.bytes(0, 3).unwrap_err().is_corrupt());
    assert_eq!(storage.read("d/f").unwrap().len(), 2);
    assert!(storage.write("d", b"").is_err() && storage.write("d/f/g", b"").is_err());
}
