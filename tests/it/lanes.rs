//! Concurrent lanes, clocks that differ, and handles in a forked child.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tensorcask::{Durability, Error, Lane, Options, Value};

fn options() -> Options {
    Options::new().durability(Durability::Buffered).flush_interval(Duration::from_millis(10))
}

#[test]
fn a_key_that_another_lane_has_just_flushed_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    // No refresh is due during the test.
    let open =
        |lane| options().refresh_interval(Duration::from_secs(1000)).lane(Lane::Number(lane)).open(dir.path(), "m");
    let (one, two) = (open(0).unwrap(), open(1).unwrap());
    one.put("first", Value::Int(1)).unwrap();
    one.flush().unwrap();
    for round in 0..3 {
        one.put_batch(&["a", "b"], &[Value::Int(round), Value::Int(round)]).unwrap();
        one.flush().unwrap();
        assert!(two.delete("a").unwrap(), "round {round}");
        assert_eq!(two.delete_batch(&["b", "a", "c", "b"]).unwrap(), 1);
        two.flush().unwrap();
        one.refresh().unwrap();
        assert!(!one.contains("a").unwrap() && !one.contains("b").unwrap());
    }
    // A key that was deleted here and then put by another lane is looked up like any missing key.
    let three = options().refresh_interval(Duration::ZERO).lane(Lane::Auto).open(dir.path(), "m").unwrap();
    assert!(three.delete("first").unwrap());
    three.flush().unwrap();
    one.put("first", Value::Int(2)).unwrap();
    one.flush().unwrap();
    assert!(three.contains("first").unwrap());
    assert_eq!(three.get("first").unwrap(), Some(Value::Int(2)));
}

fn right_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// A clock that is an hour behind.
fn late_clock() -> u64 {
    right_clock() - 3_600_000_000
}

#[test]
fn the_later_put_wins_whatever_the_clocks_say() {
    for sealed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let open = |lane, clock: fn() -> u64| {
            let options = options().refresh_interval(Duration::from_secs(1000));
            options
                .segment_rows(if sealed { 1 } else { 100 })
                .lane(Lane::Number(lane))
                .clock(clock)
                .open(dir.path(), "m")
        };
        let (right, late) = (open(0, right_clock).unwrap(), open(1, late_clock).unwrap());
        for version in 0..8_i64 {
            let writer = if version % 2 == 0 { &right } else { &late };
            let rows = [7_u8; 300 << 10];
            if version % 4 < 2 {
                writer.put("k", Value::Int(version)).unwrap();
            } else {
                // Large rows are written on a separate path.
                writer.put_rows(&["large"], &[rows.len()], &rows).unwrap();
                writer.put("k", Value::Int(version)).unwrap();
            }
            writer.flush().unwrap();
            assert_eq!(writer.get("k").unwrap(), Some(Value::Int(version)));
            // In the first rounds a writer does not refresh, so it has not seen the other's rows.
            for store in [&right, &late].into_iter().filter(|_| version > 4) {
                store.refresh().unwrap();
                assert_eq!(store.get("k").unwrap(), Some(Value::Int(version)), "sealed {sealed}");
            }
            let reader = options().open_reader(dir.path(), "m").unwrap();
            assert_eq!(reader.get("k").unwrap(), Some(Value::Int(version)), "sealed {sealed}");
        }
        assert!(late.stats().unwrap().clock_behind_s > 3500.0);
        assert!(right.stats().unwrap().clock_behind_s < 60.0);
        right.close().unwrap();
        late.close().unwrap();
        drop((right, late));
        // A lane whose clock is behind still replaces rows that other lanes committed before it started. The clock is
        // reported.
        let said = |store: &tensorcask::Reader| store.open_report().notes.iter().any(|note| note.contains("clock"));
        let late = open(2, late_clock).unwrap();
        assert!(said(late.reader()) && !said(open(3, right_clock).unwrap().reader()));
        late.put("k", Value::Int(100)).unwrap();
        late.close().unwrap();
        assert_eq!(options().open_reader(dir.path(), "m").unwrap().get("k").unwrap(), Some(Value::Int(100)));
    }
}

#[test]
#[expect(unsafe_code, reason = "fork is what is tested")]
fn a_forked_child_is_refused_and_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = options().value_cache_bytes(1 << 20).open(dir.path(), "m").unwrap();
    store.put("k", Value::Int(1)).unwrap();
    store.flush().unwrap();
    let reader = options().open_reader(dir.path(), "m").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Other threads hold locks most of the time.
        for thread in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                for i in 0.. {
                    store.put(format!("{thread} {i}"), Value::Int(i)).unwrap();
                    assert!(store.contains("k").unwrap());
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for _ in 0..30 {
            // SAFETY: the child calls only functions of the store, and ends with `_exit`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let code = in_child(&store, &reader);
                // SAFETY: ends the child immediately.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            let start = std::time::Instant::now();
            loop {
                // SAFETY: waits for the child of this test, and writes only to `status`.
                if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
                    break;
                }
                if start.elapsed() > Duration::from_secs(20) {
                    // SAFETY: signals the child of this test.
                    unsafe { libc::kill(child, libc::SIGKILL) };
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                    panic!("the child hangs");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(status, 0, "what the child saw: {}", status >> 8);
            std::thread::sleep(Duration::from_millis(3));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(store.get("k").unwrap(), Some(Value::Int(1)));
    store.close().unwrap();
    assert!(options().open_reader(dir.path(), "m").unwrap().len().unwrap() > 30);
}

/// The number of the first check of inherited handles that fails, from 1; 0 if none fails.
fn in_child(store: &tensorcask::Store, reader: &tensorcask::Reader) -> i32 {
    fn forked<T>(result: tensorcask::Result<T>) -> bool {
        matches!(result, Err(Error::Forked))
    }
    let mut checks = Vec::new();
    for reader in [reader, store.reader()] {
        let (mut out, mut found) = ([0_u8; 4], [false; 1]);
        checks.extend([
            forked(reader.get("k")),
            forked(reader.get_batch(&["k", "?"])),
            forked(reader.get_batch_into(&["k"], &[4], &mut out, &mut found)),
            forked(reader.contains("k")),
            forked(reader.len()),
            reader.keys().next().is_some_and(forked),
            reader.prefix("k").next().is_some_and(forked),
            reader.range("a".."z").next().is_some_and(forked),
            reader.iter().next().is_some_and(forked),
            forked(reader.refresh()),
            forked(reader.stats()),
            forked(reader.preload(1)),
            forked(reader.verify(&mut |_, _| {})),
        ]);
        reader.clear_value_cache();
    }
    checks.push(matches!(store.put("x", Value::Int(1)), Err(Error::ReadOnly { .. })));
    checks.push(matches!(store.delete("k"), Err(Error::ReadOnly { .. })));
    checks.push(store.flush().is_err() && store.waiting().is_empty());
    checks.push(store.close().is_ok());
    checks.iter().position(|right| !right).map_or(0, |at| at as i32 + 1)
}
