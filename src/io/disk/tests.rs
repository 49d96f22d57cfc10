use std::io::IoSlice;

use super::super::LARGE_PAGE_BYTES;
use super::super::{AppendFile, Durability, fault::FaultStorage, memory::MemoryStorage};
use super::*;

type Check = fn(&dyn Storage);

fn over_all(check: Check) {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskStorage::new(folder.path().join("a/root"));
    disk.create_dir(Path::new("")).unwrap();
    check(&disk);
    check(&MemoryStorage::new());
    check(&FaultStorage::new(Arc::new(MemoryStorage::new())));
}

fn p(path: &str) -> &Path {
    Path::new(path)
}

fn append(file: &mut dyn AppendFile, parts: &[&[u8]]) {
    file.append(&parts.iter().map(|part| IoSlice::new(part)).collect::<Vec<_>>()).unwrap();
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    match result.err() {
        Some(Error::Io { source, .. }) => source.kind(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn append_and_read() {
    over_all(|storage| {
        let mut file = storage.create(p("f")).unwrap();
        append(&mut *file, &[b"", b"ab", b"", b"cde"]);
        append(&mut *file, &[]);
        append(&mut *file, &[b"", b""]);
        append(&mut *file, &[b"fg"]);
        file.sync(Durability::SyncAll).unwrap();
        assert_eq!(file.len_bytes(), 7);
        let read = storage.open(p("f"), 0).unwrap();
        assert_eq!(read.len_bytes().unwrap(), 7);
        assert_eq!(read.bytes(0, 7).unwrap(), &b"abcdefg"[..]);
        assert_eq!(read.bytes(1, 3).unwrap(), &b"bcd"[..]);
        assert_eq!(read.bytes(4, 2).unwrap(), &b"ef"[..]);
        assert!(read.bytes(7, 0).unwrap().is_empty());
        for (offset, len) in [(7, 1), (8, 0), (0, 8), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(read.bytes(offset, len).unwrap_err().is_corrupt(), "{offset} {len}");
        }
    });
}

#[test]
fn more_parts_than_one_write_takes() {
    over_all(|storage| {
        let content: Vec<u8> = (0..9000_u32).map(|i| i as u8).collect();
        let parts: Vec<&[u8]> = content.chunks(3).collect();
        append(&mut *storage.create(p("f")).unwrap(), &parts);
        assert_eq!(storage.open(p("f"), 0).unwrap().bytes(0, 9000).unwrap(), content);
    });
}

#[test]
fn what_is_written_early_is_the_same() {
    over_all(|storage| {
        let content: Vec<u8> = (0..3 * LARGE_PAGE_BYTES as u32 / 2).flat_map(u32::to_le_bytes).collect();
        let mut file = storage.create(p("f")).unwrap();
        file.write_early(true);
        // Less than a piece, to the end of one, several at once, in many parts, and nothing.
        let piece = LARGE_PAGE_BYTES as usize;
        let (mut at, ends) = (0, [10, piece, 3 * piece - 1, content.len() - 5000, content.len()]);
        for end in ends {
            append(&mut *file, &content[at..end].chunks(1700).collect::<Vec<_>>());
            assert_eq!(file.len_bytes(), end as u64);
            at = end;
        }
        append(&mut *file, &[]);
        file.sync(Durability::SyncData).unwrap();
        assert_eq!(storage.open(p("f"), 0).unwrap().bytes(0, content.len()).unwrap(), content);
    });
}

#[test]
fn an_open_file_grows() {
    over_all(|storage| {
        let mut file = storage.create(p("f")).unwrap();
        let (growing, frozen) = (storage.open(p("f"), 1 << 16).unwrap(), storage.open(p("f"), 0).unwrap());
        assert!(growing.bytes(0, 0).unwrap().is_empty());
        assert!(growing.bytes(0, 1).unwrap_err().is_corrupt());
        append(&mut *file, &[b"first"]);
        let first = growing.bytes(0, 5).unwrap();
        append(&mut *file, &[&[3; 100_000]]);
        assert_eq!(growing.len_bytes().unwrap(), 100_005);
        assert_eq!(growing.bytes(5, 100_000).unwrap(), vec![3; 100_000], "beyond the capacity, by copy");
        assert_eq!((frozen.len_bytes().unwrap(), first), (0, Bytes::from_static(b"first")));
        assert!(frozen.bytes(0, 1).unwrap_err().is_corrupt());
    });
}

#[test]
fn bytes_outlive_names_and_files() {
    over_all(|storage| {
        append(&mut *storage.create(p("f")).unwrap(), &[b"stay"]);
        let read = storage.open(p("f"), 100).unwrap();
        let bytes = read.bytes(0, 4).unwrap();
        storage.remove(p("f")).unwrap();
        assert_eq!(read.bytes(1, 2).unwrap(), &b"ta"[..]);
        drop(read);
        append(&mut *storage.create(p("f")).unwrap(), &[b"else"]);
        assert_eq!(bytes, &b"stay"[..]);
    });
}

#[test]
fn names() {
    over_all(|storage| {
        assert_eq!(kind(storage.list(p("d"))), ErrorKind::NotFound);
        assert_eq!(kind(storage.create(p("d/f"))), ErrorKind::NotFound);
        storage.create_dir(p("d/e")).unwrap();
        storage.create_dir(p("d/e")).unwrap();
        append(&mut *storage.create(p("d/b")).unwrap(), &[b"12"]);
        append(&mut *storage.create(p("d/a")).unwrap(), &[b"1"]);
        storage.create(p("d/e/deep")).unwrap();
        let names = |path| storage.list(p(path)).unwrap().into_iter().map(|e| (e.name, e.kind));
        let entry = |name: &str, is_dir| (name.to_owned(), if is_dir { FileKind::Folder } else { FileKind::File });
        assert!(names("").eq([entry("d", true)]));
        assert!(names("./d").eq([entry("a", false), entry("b", false), entry("e", true)]));
        assert_eq!(["d/a", "d/b"].map(|path| storage.len_bytes(p(path)).unwrap()), [1, 2]);
        assert_eq!(kind(storage.len_bytes(p("d/no"))), ErrorKind::NotFound);
        assert_eq!(kind(storage.create(p("d/a"))), ErrorKind::AlreadyExists);
        assert_eq!(kind(storage.create_dir(p("d/a"))), ErrorKind::AlreadyExists);
        assert_eq!(kind(storage.create_dir(p("d/a/x"))), ErrorKind::NotADirectory);
        assert_eq!(kind(storage.create(p("d/a/x"))), ErrorKind::NotADirectory);
        assert_eq!(kind(storage.list(p("d/a"))), ErrorKind::NotADirectory);
        assert_eq!(kind(storage.open(p("d"), 0)), ErrorKind::IsADirectory);
        assert_eq!(kind(storage.remove(p("d"))), ErrorKind::IsADirectory);
        storage.rename(p("d/a"), p("d/b")).unwrap();
        assert!(names("d").eq([entry("b", false), entry("e", true)]));
        assert_eq!(storage.len_bytes(p("d/b")).unwrap(), 1);
        storage.rename(p("d/b"), p("d/e/moved")).unwrap();
        storage.sync_dir(p("d")).unwrap();
        assert_eq!(kind(storage.rename(p("d/b"), p("d/c"))), ErrorKind::NotFound);
        assert_eq!(kind(storage.rename(p("d/e/moved"), p("x/y"))), ErrorKind::NotFound);
        for missing in [kind(storage.open(p("d/b"), 0)), kind(storage.remove(p("d/b")))] {
            assert_eq!(missing, ErrorKind::NotFound);
        }
        assert_eq!(kind(storage.sync_dir(p("no"))), ErrorKind::NotFound);
        assert_eq!(kind(storage.open_append(p("no"), 0)), ErrorKind::NotFound);
        for outside in ["../x", "/x", "d/../../x"] {
            assert!(matches!(storage.create(p(outside)), Err(Error::Invalid { .. })));
        }
    });
}

#[test]
fn open_append_cuts_the_tail() {
    over_all(|storage| {
        append(&mut *storage.create(p("f")).unwrap(), &[b"keep", b"torn"]);
        let mut file = storage.open_append(p("f"), 4).unwrap();
        assert_eq!(file.len_bytes(), 4);
        append(&mut *file, &[b"+"]);
        assert_eq!(storage.open(p("f"), 0).unwrap().bytes(0, 5).unwrap(), &b"keep+"[..]);
        assert!(storage.open_append(p("f"), 6).unwrap_err().is_corrupt());
    });
}

#[test]
fn what_is_no_file_is_told_apart_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let storage = DiskStorage::new(folder.path());
    storage.create_dir(p("folder")).unwrap();
    append(&mut *storage.create(p("file")).unwrap(), &[b"x"]);
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let link = |target: &str, name| std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
    [("file", "a"), ("folder", "b"), ("nothing", "c"), ("d", "d"), ("pipe", "e")]
        .into_iter()
        .for_each(|(target, name)| link(target, name));
    let kinds: Vec<_> = storage.list(p("")).unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
    use FileKind::{File, Folder, Link, Other};
    let expected = [
        ("a", Link),
        ("b", Folder),
        ("c", Other),
        ("d", Other),
        ("e", Other),
        ("file", File),
        ("folder", Folder),
        ("pipe", Other),
        ("socket", Other),
    ];
    assert!(kinds.iter().map(|(name, kind)| (&**name, *kind)).eq(expected), "{kinds:?}");
    for (name, expected) in expected {
        assert_eq!(storage.kind(p(name)).unwrap(), Some(expected));
        let opened = storage.open(p(name), 0);
        match expected {
            File | Link => assert_eq!(opened.unwrap().bytes(0, 1).unwrap(), &b"x"[..]),
            Folder => assert_eq!(kind(opened), ErrorKind::IsADirectory),
            // A link that leads to nothing may be either.
            Other => assert!(matches!(kind(opened), ErrorKind::InvalidInput | ErrorKind::NotFound)),
        }
        if expected != File {
            assert_eq!(kind(storage.try_lock(p(name))), ErrorKind::AlreadyExists, "{name}");
            assert_eq!(kind(storage.open_append(p(name), 0)), ErrorKind::AlreadyExists, "{name}");
        }
    }
    assert_eq!(storage.kind(p("nothing")).unwrap(), None);
    assert_eq!(storage.open(p("file"), 0).unwrap().len_bytes().unwrap(), 1);
}

#[test]
fn locks() {
    over_all(|storage| {
        let held = storage.try_lock(p("lock")).unwrap();
        assert!(held.is_some());
        assert!(storage.try_lock(p("lock")).unwrap().is_none());
        assert!(storage.try_lock(p("other")).unwrap().is_some());
        drop(held);
        assert!(storage.try_lock(p("lock")).unwrap().is_some());
        assert_eq!(storage.list(p("")).unwrap().len(), 2);
        assert_eq!(kind(storage.try_lock(p("no/lock"))), ErrorKind::NotFound);
    });
}

#[test]
fn positions_are_locked_for_other_handles() {
    over_all(|storage| {
        let open = || storage.position_locks(p("positions")).unwrap();
        // Not every system has them.
        let (Some(one), Some(two)) = (open(), open()) else { return };
        let far = (1 << 63) - 1;
        for position in [0, 7, far] {
            assert!(one.try_lock(position).unwrap() && one.try_lock(position).unwrap());
            assert!(one.is_free(position).unwrap() && !two.is_free(position).unwrap());
            assert!(!two.try_lock(position).unwrap());
        }
        assert!(two.try_lock(8).unwrap() && !one.try_lock(8).unwrap());
        // A position that another handle holds is not released.
        two.unlock(7).unwrap();
        assert!(!two.is_free(7).unwrap());
        one.unlock(7).unwrap();
        assert!(two.is_free(7).unwrap() && two.try_lock(7).unwrap() && !one.is_free(7).unwrap());
        drop(one);
        assert!(two.try_lock(0).unwrap() && two.try_lock(far).unwrap());
        assert_eq!(storage.len_bytes(p("positions")).unwrap(), 0);
        assert_eq!(kind(storage.position_locks(p("no/positions"))), ErrorKind::NotFound);
    });
}

#[test]
fn the_file_system_can_be_asked_before_the_root_is_there() {
    let folder = tempfile::tempdir().unwrap();
    DiskStorage::new(folder.path().join("not/yet")).file_system_is_network().unwrap();
    DiskStorage::new("not/yet").file_system_is_network().unwrap();
}
