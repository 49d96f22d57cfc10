//! Several processes that use one folder, as the ranks of a distributed job do.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tch::Tensor;
use tensorcask_torch::{CacheOptions, CachedModule, Rank};

use super::{assert_same, doubling_with, rows};

const ROLE: &str = "TENSORCASK_TORCH_ROLE";
const DIR: &str = "TENSORCASK_TORCH_DIR";
const RANKS: u64 = 4;
const SAMPLES: u64 = 240;

/// Not a test: the code of the child processes of the tests below.
#[test]
fn child_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = PathBuf::from(dir);
    let rank = Rank::from_env().unwrap();
    let options = CacheOptions::in_folder(&dir, "shared");
    let options = if role == "one writer" { options.writer_rank(0) } else { options };
    let (module, _) = doubling_with(options);
    let mut computed = Vec::new();
    for epoch in 0..3 {
        for chunk in shard(rank, epoch).chunks(16) {
            call(&module, chunk);
        }
        computed.push(module.end_epoch().misses.to_string());
        // Ranks flush at the end of an epoch.
        module.flush().unwrap();
        barrier(&dir, rank, epoch);
    }
    println!("\ncomputed {}", computed.join(" "));
    module.close().unwrap();
}

/// The samples of a rank in an epoch: the order differs between epochs, and ranks do not overlap within one.
fn shard(rank: Rank, epoch: u64) -> Vec<u64> {
    let all = (0..SAMPLES).map(|at| (at * 77 + epoch * 31) % SAMPLES);
    all.enumerate().filter(|(at, _)| *at as u64 % RANKS == u64::from(rank.rank)).map(|(_, id)| id).collect()
}

fn call(module: &CachedModule, ids: &[u64]) {
    let parts: Vec<Tensor> = ids.iter().map(|&id| rows(id as i64, 1, 8)).collect();
    let x = Tensor::cat(&parts, 0);
    let output = module.forward_with_ids(&x, ids).unwrap().into_tensor().unwrap();
    assert_same(&output, &(x * 2 + 1));
}

/// Waits for all ranks, by means of files.
fn barrier(dir: &Path, rank: Rank, epoch: u64) {
    std::fs::write(dir.join(format!("epoch-{epoch}-{}", rank.rank)), "").unwrap();
    let started = Instant::now();
    while !(0..RANKS).all(|other| dir.join(format!("epoch-{epoch}-{other}")).exists()) {
        assert!(started.elapsed() < Duration::from_secs(60), "another rank did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a job; returns how many samples each rank computed in each epoch.
fn job(role: &str, dir: &Path) -> Vec<Vec<u64>> {
    let children: Vec<_> = (0..RANKS)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "ranks::child_process", "--nocapture", "--test-threads=1"])
                .env(ROLE, role)
                .env(DIR, dir)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", RANKS.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let computed = children.into_iter().map(|child| {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let line = text.lines().find_map(|line| line.strip_prefix("computed ")).unwrap();
        line.split(' ').map(|number| number.parse().unwrap()).collect()
    });
    computed.collect()
}

fn sum(computed: &[Vec<u64>], epoch: usize) -> u64 {
    computed.iter().map(|rank| rank[epoch]).sum()
}

#[test]
fn four_ranks_compute_each_sample_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = job("all write", dir.path());
    assert_eq!(sum(&first, 0), SAMPLES);
    // Samples move between the ranks, so each rank finds outputs of the others.
    assert_eq!((sum(&first, 1), sum(&first, 2)), (0, 0));
    for name in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if name.is_file() {
            std::fs::remove_file(name).unwrap();
        }
    }
    // The next job, and this process, find all outputs.
    let second = job("all write", dir.path());
    assert_eq!((sum(&second, 0), sum(&second, 1), sum(&second, 2)), (0, 0, 0));
    let (module, seen) = doubling_with(CacheOptions::in_folder(dir.path(), "shared"));
    call(&module, &(0..SAMPLES).collect::<Vec<_>>());
    assert_eq!((seen.samples(), module.len().unwrap()), (0, SAMPLES));
}

#[test]
fn one_rank_writes_and_the_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let computed = job("one writer", dir.path());
    assert_eq!(sum(&computed, 0), SAMPLES);
    // The other ranks compute outputs that the writer has not written, and do not keep them.
    let (module, _) = doubling_with(CacheOptions::in_folder(dir.path(), "shared"));
    let of_writer = (0..3)
        .flat_map(|epoch| shard(Rank { rank: 0, world_size: 4 }, epoch))
        .collect::<std::collections::HashSet<_>>();
    module.contains(&[0_u64]).unwrap();
    assert_eq!(module.len().unwrap(), of_writer.len() as u64);
    let known: std::collections::HashSet<u64> = shard(Rank { rank: 0, world_size: 4 }, 0).into_iter().collect();
    for rank in 1..RANKS {
        let missing =
            shard(Rank { rank: rank as u16, world_size: 4 }, 1).iter().filter(|id| !known.contains(id)).count();
        // The writer may have computed more of them in the meantime.
        assert!(computed[rank as usize][1] <= missing as u64);
    }
    assert!(sum(&computed, 1) > 0);
}

#[test]
fn two_jobs_in_one_folder_share_it() {
    // The lane of this rank is in use: another lane is chosen, and nothing is lost.
    let dir = tempfile::tempdir().unwrap();
    let left = doubling_with(CacheOptions::in_folder(dir.path(), "m"));
    // With other options, the stores are opened separately.
    let right = doubling_with(CacheOptions::in_folder(dir.path(), "m").engine(|engine| engine.segment_rows(1000)));
    call(&left.0, &(0..20).collect::<Vec<_>>());
    call(&right.0, &(20..40).collect::<Vec<_>>());
    left.0.flush().unwrap();
    right.0.flush().unwrap();
    call(&left.0, &(0..40).collect::<Vec<_>>());
    call(&right.0, &(0..40).collect::<Vec<_>>());
    assert_eq!((left.1.samples(), right.1.samples()), (20, 20));
}
