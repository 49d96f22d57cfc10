//! Several processes, each of which wraps the same module: leases make them compute each sample once.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as expected")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tensorcask::Tensor;
use tensorcask_cache::{CacheOptions, CachedModule};

const ROLE: &str = "TENSORCASK_CACHE_ROLE";
const DIR: &str = "TENSORCASK_CACHE_DIR";
const SAMPLES: u64 = 300;

fn wrap(dir: &Path, timeout: Duration, before: impl Fn() + Send + 'static) -> CachedModule {
    let log = dir.join(format!("computed-{}", std::process::id()));
    let options = CacheOptions::in_folder(dir.join("cache"), "double").version("1").lease_timeout(timeout);
    let double = move |x: &Tensor| {
        let inputs = x.to_vec::<f32>()?;
        before();
        let lines: String = inputs.iter().map(|input| format!("{input}\n")).collect();
        std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap().write_all(lines.as_bytes()).unwrap();
        Tensor::from_slice(x.shape(), &inputs.iter().map(|x| x * 2.0).collect::<Vec<f32>>())
    };
    options.wrap_fn(double).unwrap()
}

fn ask(module: &CachedModule, ids: &[u64]) {
    let inputs: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
    let x = Tensor::from_slice(&[ids.len(), 1], &inputs).unwrap();
    let outputs = module.forward_with_ids(&x, ids).unwrap().into_tensor().unwrap().to_vec::<f32>().unwrap();
    assert!(outputs.iter().zip(inputs).all(|(output, input)| *output == input * 2.0));
}

/// Not a test by itself: the child processes, each with its role.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = Path::new(&dir);
    if role == "hangs" {
        let module = wrap(dir, Duration::from_secs(30), || {
            println!("\ncomputing");
            std::thread::sleep(Duration::from_secs(600));
        });
        ask(&module, &[1, 2]);
    }
    let number: u64 = role.parse().unwrap();
    let module = wrap(dir, Duration::from_secs(30), || std::thread::sleep(Duration::from_millis(10)));
    // Opens the store before the others compute.
    ask(&module, &[SAMPLES + number]);
    println!("\nready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for first in (0..SAMPLES).step_by(20) {
        let ids: Vec<u64> = (0..40).map(|at| (first + number * 77 + at * (1 + number % 2)) % SAMPLES).collect();
        ask(&module, &ids);
    }
    assert!(module.warnings().is_empty(), "{:?}", module.warnings());
    let counts = module.counts();
    println!("\nmisses {}", counts.misses);
    module.close().unwrap();
}

fn start(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .env("RANK", role.parse::<u16>().unwrap_or(7).to_string())
        .env("WORLD_SIZE", "8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok)
}

#[test]
fn ranks_compute_each_sample_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = (0..3).map(|number: u64| start(&number.to_string(), dir.path())).collect();
    let mut outputs: Vec<_> = children.iter_mut().map(lines).collect();
    for output in &mut outputs {
        assert!(output.any(|line| line == "ready"));
    }
    for child in &mut children {
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let misses = outputs.into_iter().map(|mut output| {
        let line = output.find_map(|line| line.strip_prefix("misses ").map(str::to_owned));
        // Reads to the end, so that the child can finish its output.
        output.for_each(drop);
        line.unwrap().parse::<u64>().unwrap()
    });
    let misses: u64 = misses.sum();
    assert!(children.into_iter().all(|mut child| child.wait().unwrap().success()));
    let logs = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    let computed: Vec<String> = logs
        .flat_map(|log| std::fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let distinct: std::collections::HashSet<&String> = computed.iter().collect();
    assert_eq!((computed.len(), distinct.len() as u64, misses), (SAMPLES as usize + 3, SAMPLES + 3, SAMPLES + 3));
}

#[test]
fn a_rank_that_is_killed_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut hanging = start("hangs", dir.path());
    let mut output = lines(&mut hanging);
    assert!(output.any(|line| line == "computing"));
    let hasty = wrap(dir.path(), Duration::from_millis(300), || ());
    let started = Instant::now();
    ask(&hasty, &[1]);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let patient = wrap(dir.path(), Duration::from_secs(300), || ());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&patient, &[2]));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        hanging.kill().unwrap();
        hanging.wait().unwrap();
    });
    assert!(started.elapsed() < Duration::from_secs(100));
    assert_eq!((hasty.counts().misses, patient.counts().misses), (1, 1));
}
