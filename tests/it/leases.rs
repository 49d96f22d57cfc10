//! Leases: several processes compute each key once, and go on when one of them is killed or stopped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tensorcask::{Lane, Options, Store, Value};

const ROLE: &str = "TENSORCASK_LEASES_ROLE";
const DIR: &str = "TENSORCASK_LEASES_DIR";
const KEYS: u64 = 1200;
const DIMS: usize = 8;

fn row(key: u64) -> [f32; DIMS] {
    let mut row = [key as f32 / 3.0; DIMS];
    row[0] = key as f32;
    row
}

fn open(dir: &Path, timeout: Duration) -> Store {
    Options::new().lane(Lane::Auto).lease_timeout(timeout).open(dir, "m").unwrap()
}

/// Not a test by itself: the child processes, each with its role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    match role.as_str() {
        "hangs" => {
            let store = open(dir, Duration::from_secs(30));
            let value = store.get_or_compute(&["k", "l"], |at| {
                say("computing");
                std::thread::sleep(Duration::from_secs(if dir.join("soon").exists() { 2 } else { 600 }));
                Ok(vec![Value::Int(1); at.len()])
            });
            say(&format!("computed {:?}", value.unwrap()));
            store.close().unwrap();
        }
        number => compute(dir, number.parse().unwrap()),
    }
}

fn say(what: &str) {
    println!("\n{what}");
    std::io::stdout().flush().unwrap();
}

/// Asks for all keys in overlapping batches, in an order of its own, until all are there. Notes the keys that it
/// computes in a file.
fn compute(dir: &Path, number: u64) {
    let store = open(dir, Duration::from_secs(30));
    say("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let mut log = std::fs::File::create(dir.join(format!("computed-{}", std::process::id()))).unwrap();
    let step = [1, 7, 11, 13][number as usize % 4];
    for first in (0..KEYS).step_by(50) {
        let keys: Vec<u64> = (0..100).map(|at| ((first + at) * step + number * 150) % KEYS).collect();
        let mut out = vec![0.0; keys.len() * DIMS];
        let computed = store.get_or_compute_rows(&keys, &[DIMS], &mut out, |at| {
            std::thread::sleep(Duration::from_millis(10));
            let lines: String = at.iter().map(|&at| format!("{}\n", keys[at])).collect();
            log.write_all(lines.as_bytes()).unwrap();
            Ok(at.iter().flat_map(|&at| row(keys[at])).collect())
        });
        computed.unwrap();
        assert_eq!(out, keys.iter().flat_map(|key| row(*key)).collect::<Vec<f32>>());
    }
    assert!(store.lease_failure().is_none());
    store.close().unwrap();
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(role: &str, dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leases::child_process", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits until the process has said `what`; returns the line.
    fn wait_for(&mut self, what: &str) -> String {
        self.lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(what)).unwrap()
    }

    fn go(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    fn succeed(mut self) {
        // Reads to the end, so that the child can finish its output.
        self.lines.by_ref().for_each(drop);
        assert!(self.child.wait().unwrap().success());
    }
}

/// How often each key was computed.
fn computed(dir: &Path) -> BTreeMap<u64, usize> {
    let mut computed = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("computed-") {
            let log = std::fs::read_to_string(entry.path()).unwrap();
            log.lines().for_each(|key| *computed.entry(key.parse().unwrap()).or_insert(0) += 1);
        }
    }
    computed
}

fn check_all(dir: &Path) {
    let store = open(dir, Duration::from_secs(30));
    assert!(store.open_report().quarantined.is_empty() && store.open_report().missing.is_empty());
    let keys: Vec<u64> = (0..KEYS).collect();
    let (mut out, mut found) = (vec![0.0_f32; keys.len() * DIMS], vec![false; keys.len()]);
    assert_eq!(store.get_batch_into(&keys, &[DIMS], &mut out, &mut found).unwrap(), keys.len());
    assert_eq!(out, keys.iter().flat_map(|key| row(*key)).collect::<Vec<f32>>());
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn processes_compute_each_key_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes: Vec<Process> =
        (0..4).map(|number: u64| Process::start(&number.to_string(), dir.path())).collect();
    processes.iter_mut().for_each(|process| drop(process.wait_for("ready")));
    processes.iter_mut().for_each(Process::go);
    processes.into_iter().for_each(Process::succeed);
    let computed = computed(dir.path());
    let twice: Vec<_> = computed.iter().filter(|(_, times)| **times != 1).collect();
    assert!(computed.len() == KEYS as usize && twice.is_empty(), "{} keys, {twice:?}", computed.len());
    check_all(dir.path());
}

#[test]
fn when_processes_are_killed_the_others_compute_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let start = |number: u64| {
        let mut process = Process::start(&number.to_string(), dir.path());
        process.wait_for("ready");
        process.go();
        process
    };
    let mut processes: Vec<Process> = (0..4).map(start).collect();
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(60));
        let killed = &mut processes[round % 4];
        // It may have ended.
        killed.signal(Signal::KILL);
        killed.child.wait().unwrap();
        *killed = start((round % 4) as u64);
    }
    processes.into_iter().for_each(Process::succeed);
    check_all(dir.path());
}

#[test]
fn a_killed_process_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Duration::from_secs(300));
    let mut hanging = Process::start("hangs", dir.path());
    hanging.wait_for("computing");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            store.get_or_compute(&["k"], |_| Ok(vec![Value::Int(2)])).unwrap();
            Instant::now()
        });
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        hanging.signal(Signal::KILL);
        hanging.child.wait().unwrap();
        let killed = Instant::now();
        assert!(waiting.join().unwrap().duration_since(killed) < Duration::from_secs(10));
    });
    assert_eq!(
        store.get_batch(&["k", "l"]).unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [Some(Value::Int(2)), None]
    );
}

#[test]
fn a_stopped_process_is_waited_for_until_the_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("soon"), "").unwrap();
    let store = open(dir.path(), Duration::from_millis(700));
    let mut stopped = Process::start("hangs", dir.path());
    stopped.wait_for("computing");
    stopped.signal(Signal::STOP);
    let start = Instant::now();
    let values = store.get_or_compute(&["k", "m"], |at| Ok(at.iter().map(|at| Value::Int(2 + *at as i64)).collect()));
    assert_eq!(values.unwrap(), [Value::Int(2), Value::Int(3)]);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(700) && waited < Duration::from_secs(10), "{waited:?}");
    store.flush().unwrap();
    // The process continues, and puts its own row. The later row wins.
    stopped.signal(Signal::CONT);
    assert_eq!(stopped.wait_for("computed"), "computed [Int(1), Int(1)]");
    stopped.succeed();
    store.refresh().unwrap();
    assert_eq!(store.get("k").unwrap(), Some(Value::Int(1)));
    assert!(store.verify(&mut |_, _| {}).unwrap().is_clean());
}

#[test]
fn a_process_that_computes_the_same_keys_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("soon"), "").unwrap();
    let store = open(dir.path(), Duration::from_secs(300));
    let mut computing = Process::start("hangs", dir.path());
    computing.wait_for("computing");
    let values = store.get_or_compute(&["k", "l"], |_| panic!("computed twice"));
    assert_eq!(values.unwrap(), [Value::Int(1), Value::Int(1)]);
    computing.succeed();
}
