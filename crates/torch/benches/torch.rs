//! The cost of the torch layer, and the time that it saves. Each figure is measured together with its control, in turn
//! in the same run.
//!
//! `--only hits|variables|hashing|misses|epochs` measures one group.
//!
//! Computing and reading use one thread, so that ratios do not depend on the number of cores.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};
use tensorcask::Reader;
use tensorcask_torch::WrapModules as _;
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, Variables};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const BATCH: usize = 256;
const DIMS: i64 = 768;
/// Marks a child process, and passes it the folder.
const CHILD: &str = "TENSORCASK_TORCH_BENCH_CHILD";

struct Settings {
    rows: usize,
    rounds: usize,
    dir: PathBuf,
    report: Option<PathBuf>,
    only: Option<String>,
}

type Group = fn(&Settings, &mut Vec<Figure>) -> Fallible;

fn settings() -> Fallible<Settings> {
    let dir = std::env::temp_dir().join("tensorcask-torch-bench");
    let mut settings = Settings { rows: 100_000, rounds: 200, dir, report: None, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--only" => settings.only = Some(value()?),
            "--report" => settings.report = Some(value()?.into()),
            "--test" => (settings.rows, settings.rounds) = (2000, 5),
            "--bench" => {}
            other => return Err(format!("{other} is no option: --rows, --dir, --only, --report, --test").into()),
        }
    }
    settings.rows = settings.rows.max(2 * BATCH);
    Ok(settings)
}

/// A line of the report.
struct Figure {
    what: String,
    control: String,
    ratio: f64,
    spread: (f64, f64),
    wanted: String,
}

/// Times `subject` and `control` in turn, and returns the quartiles of the ratios of adjacent pairs, subject to
/// control.
fn paired(
    rounds: usize,
    mut control: impl FnMut() -> Fallible,
    mut subject: impl FnMut() -> Fallible,
) -> Fallible<([f64; 3], Duration, Duration)> {
    let mut ratios = Vec::new();
    let (mut controls, mut subjects) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begin = Instant::now();
        control()?;
        let middle = Instant::now();
        subject()?;
        let (first, second) = (middle - begin, middle.elapsed());
        ratios.push(second.as_secs_f64() / first.as_secs_f64());
        controls.push(first);
        subjects.push(second);
    }
    ratios.sort_by(f64::total_cmp);
    controls.sort();
    subjects.sort();
    let at = |share: usize| ratios.get(ratios.len() * share / 4).copied().unwrap_or(f64::NAN);
    let median = |times: &[Duration]| times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(([at(1), at(2), at(3)], median(&controls), median(&subjects)))
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}

/// Ids in an order that defeats prefetching of cache lines and pages.
fn scattered(rows: usize, round: usize) -> Vec<u64> {
    (0..BATCH).map(|at| (((at + round * BATCH) * 1_000_003) % rows) as u64).collect()
}

/// A function from one small tensor to 768 numbers, with as many variables as a small encoder has.
fn wide(dir: &Path) -> Fallible<CachedModule> {
    let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let weights = (0..100).map(|n| (format!("{n:02}"), if n % 2 == 0 { ones(&[384]) } else { ones(&[384, 384]) }));
    let weights = Variables::from(weights.collect::<Vec<_>>());
    let options = CacheOptions::in_folder(dir, "wide").version("1");
    let forward = |inputs: &Inputs| Ok(inputs.tensor(0)? * Tensor::ones([1, DIMS], (Kind::Float, Device::Cpu)));
    Ok(options.wrap_inputs_fn_with(weights, forward)?)
}

fn hits(settings: &Settings, figures: &mut Vec<Figure>) -> Fallible {
    let module = wide(&settings.dir)?;
    let all: Vec<u64> = (0..settings.rows as u64).collect();
    for chunk in all.chunks(4096) {
        let x = Tensor::from_slice(&chunk.iter().map(|&id| id as i64).collect::<Vec<_>>()).to_kind(Kind::Float);
        module.forward_with_ids(x.unsqueeze(1), chunk)?;
    }
    module.close()?;
    let module = wide(&settings.dir)?;
    let folder = module.folder().ok_or("a store on disk has a folder")?;
    let reader = Reader::open(folder, "u64")?;
    let x = Tensor::zeros([BATCH as i64, 1], (Kind::Float, Device::Cpu));
    let mut buffer = vec![0.0_f32; BATCH * DIMS as usize];
    let mut found = vec![false; BATCH];
    // Both read every row before anything is timed.
    for round in 0..settings.rows.div_ceil(BATCH) {
        let ids = scattered(settings.rows, round);
        reader.get_batch_into(&ids, &[DIMS as usize], &mut buffer, &mut found)?;
        black_box(module.forward_with_ids(&x, &ids)?);
    }
    // The two are half a cycle apart, so that neither finds rows in the processor's caches that the other has just
    // read.
    let (mut round, mut other) = (0, settings.rows / BATCH / 2);
    let (quartiles, control, subject) = paired(
        settings.rounds,
        || {
            round += 1;
            let ids = scattered(settings.rows, round);
            assert_eq!(reader.get_batch_into(&ids, &[DIMS as usize], &mut buffer, &mut found)?, BATCH);
            black_box(&buffer);
            Ok(())
        },
        || {
            other += 1;
            let ids = scattered(settings.rows, other);
            black_box(module.forward_with_ids(&x, &ids)?);
            Ok(())
        },
    )?;
    let misses = module.counts().misses;
    if misses > 0 {
        return Err(format!("{misses} misses where all should be hits").into());
    }
    figures.push(Figure {
        what: format!("a batch of {BATCH} hits of 768 f32, by ids ({})", micros(subject)),
        control: format!("get_batch_into of the same keys into a buffer used again ({})", micros(control)),
        ratio: quartiles[1],
        spread: (quartiles[0], quartiles[2]),
        wanted: "≤ 1.3".into(),
    });
    Ok(())
}

/// The cost of inspecting many variables: hits of a module with many, compared to a module with none.
fn many_variables(settings: &Settings, figures: &mut Vec<Figure>) -> Fallible {
    let store = || nn::VarStore::new(Device::Cpu);
    let (mut alike, mut resnet) = (store(), store());
    for n in 0..400 {
        let _zeros = alike.root().zeros(&format!("{n:03}"), &[4096]);
    }
    // The number and the sizes of the variables of a ResNet-152: convolutions, and four variables for each batch
    // normalisation.
    for n in 0..152 {
        let path = resnet.root() / "layer" / n;
        let channels = 64_i64 << (n % 5).min(4);
        let _zeros = (&path / "conv").zeros("weight", &[channels, 64, 1, 1]);
        for part in ["weight", "bias", "running_mean", "running_var"] {
            let _zeros = (&path / "bn").zeros(part, &[channels]);
        }
    }
    alike.freeze();
    resnet.freeze();
    for (what, variables, batch, wanted) in
        [("400 variables of 4,096 elements", &alike, BATCH, 1.15), ("760 variables of a ResNet-152", &resnet, 1, 1.5)]
    {
        let wrap = |variables: Variables| {
            let forward = |inputs: &Inputs| Ok(inputs.tensor(0)? * Tensor::ones([1, DIMS], (Kind::Float, Device::Cpu)));
            CacheOptions::in_memory().module_id("many").wrap_inputs_fn_with(variables, forward)
        };
        let (plain, many) = (wrap(Variables::none())?, wrap(variables.into())?);
        let samples = 16 * BATCH as u64;
        let all: Vec<u64> = (0..samples).collect();
        let x = Tensor::zeros([samples as i64, 1], (Kind::Float, Device::Cpu));
        plain.forward_with_ids(&x, &all)?;
        many.forward_with_ids(&x, &all)?;
        let x = x.narrow(0, 0, batch as i64);
        let call = |module: &CachedModule, round: &mut usize| -> Fallible {
            // Several calls are timed together, as one is too short for the clock.
            for _ in 0..16 {
                *round += 1;
                let ids = scattered(samples as usize, *round);
                black_box(module.forward_with_ids(&x, ids.get(..batch).unwrap_or_default())?);
            }
            Ok(())
        };
        let (mut round, mut other) = (0, 8);
        let rounds = settings.rounds;
        let (quartiles, control, subject) = paired(rounds, || call(&plain, &mut round), || call(&many, &mut other))?;
        figures.push(Figure {
            what: format!("hits in batches of {batch} of a module of {what} ({} each)", micros(subject / 16)),
            control: format!("a module of none ({})", micros(control / 16)),
            ratio: quartiles[1],
            spread: (quartiles[0], quartiles[2]),
            wanted: format!("≤ {wanted}"),
        });
    }
    Ok(())
}

fn hashing(settings: &Settings, figures: &mut Vec<Figure>) -> Fallible {
    let images = Tensor::randn([64, 3, 224, 224], (Kind::Float, Device::Cpu));
    // As an image decoder returns images: channels last, viewed as channels first.
    let last = images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let bytes_last = (Tensor::randn([64, 224, 224, 3], (Kind::Float, Device::Cpu)) * 50.0).to_kind(Kind::Uint8);
    let bytes_last = bytes_last.permute([0, 3, 1, 2]);
    let gray = Tensor::randn([64, 1, 224, 224], (Kind::Float, Device::Cpu)).expand([64, 3, 224, 224], false);
    hashing_of(settings, figures, "f32", &images, "≥ 5 GB/s")?;
    hashing_of(settings, figures, "f32, channels last", &last, "≥ 8 GB/s")?;
    hashing_of(settings, figures, "u8, channels last", &bytes_last, "≥ 8 GB/s")?;
    hashing_of(settings, figures, "f32, one channel expanded", &gray, "≥ 8 GB/s")
}

fn hashing_of(settings: &Settings, figures: &mut Vec<Figure>, what: &str, images: &Tensor, wanted: &str) -> Fallible {
    let module =
        CacheOptions::in_memory().module_id("images").wrap_fn(|x: &Tensor| x.flatten(1, -1).narrow(1, 0, 4))?;
    let bytes = images.numel() * images.kind().elt_size_in_bytes();
    let from = images.contiguous();
    let copy = from.zeros_like();
    black_box(module.forward(images)?);
    let (quartiles, control, subject) = paired(
        settings.rounds.min(60),
        || {
            copy.shallow_clone().f_copy_(&from)?;
            Ok(())
        },
        || {
            black_box(module.forward(images)?);
            Ok(())
        },
    )?;
    let rate = |time: Duration| format!("{:.1} GB/s", bytes as f64 / time.as_secs_f64() / 1e9);
    figures.push(Figure {
        what: format!("64 hits by content of 3 × 224 × 224 {what}: {} of input", rate(subject)),
        control: format!("copying the same bytes: {}", rate(control)),
        ratio: quartiles[1],
        spread: (quartiles[0], quartiles[2]),
        wanted: wanted.into(),
    });
    Ok(())
}

/// Keeps a core busy for one millisecond per sample.
fn slow(x: &Tensor) -> Tensor {
    let until = Instant::now() + Duration::from_millis(x.size().first().copied().unwrap_or(0).unsigned_abs());
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    x * Tensor::ones([1, DIMS], (Kind::Float, Device::Cpu))
}

fn misses(settings: &Settings, figures: &mut Vec<Figure>) -> Fallible {
    for content in [false, true] {
        let name = if content { "slow-by-content" } else { "slow-by-ids" };
        let module = CacheOptions::in_folder(&settings.dir, name).version("1").wrap_fn(slow)?;
        let samples = 64_u64;
        let mut from = 0_u64;
        let make = |from: u64| {
            let numbers = Tensor::arange_start(from as i64, (from + samples) as i64, (Kind::Float, Device::Cpu));
            numbers.unsqueeze(1) * Tensor::ones([1, 3072], (Kind::Float, Device::Cpu))
        };
        let narrow = |x: &Tensor| x.narrow(1, 0, 1);
        let (quartiles, control, subject) = paired(
            settings.rounds.min(20),
            || {
                let x = make(1 << 20);
                let _guard = tch::no_grad_guard();
                let _output = black_box(slow(&narrow(&x)));
                Ok(())
            },
            || {
                from += samples;
                let x = make(from);
                let ids: Vec<u64> = (from..from + samples).collect();
                let output =
                    if content { module.forward(narrow(&x)) } else { module.forward_with_ids(narrow(&x), &ids) };
                black_box(output?);
                Ok(())
            },
        )?;
        if module.counts().hits > 0 {
            return Err("hits where all should be misses".into());
        }
        figures.push(Figure {
            what: format!(
                "{samples} misses of 1 ms each, {} ({})",
                if content { "by content" } else { "by ids" },
                micros(subject)
            ),
            control: format!("the module itself ({})", micros(control)),
            ratio: quartiles[1],
            spread: (quartiles[0], quartiles[2]),
            wanted: "≤ 1.05".into(),
        });
    }
    Ok(())
}

/// A perceptron of 3.07 MFLOP per sample, with the same weights in every process.
fn perceptron() -> (nn::Sequential, nn::VarStore) {
    tch::manual_seed(1);
    let mut variables = nn::VarStore::new(Device::Cpu);
    let root = variables.root();
    let network = nn::seq()
        .add(nn::linear(&root / "first", DIMS, 1000, Default::default()))
        .add_fn(|x| x.relu())
        .add(nn::linear(&root / "second", 1000, DIMS, Default::default()));
    variables.freeze();
    (network, variables)
}

fn cached_perceptron(dir: &Path) -> Fallible<CachedModule> {
    let (network, variables) = perceptron();
    Ok(CacheOptions::in_folder(dir, "perceptron").version("1").wrap_module(network, Variables::from(&variables))?)
}

const EPOCH: i64 = 8192;

fn samples() -> Tensor {
    (Tensor::arange(EPOCH, (Kind::Float, Device::Cpu)).unsqueeze(1) + Tensor::arange(DIMS, (Kind::Float, Device::Cpu)))
        .sin()
}

/// Runs an epoch of hits through the cache; returns the seconds. Misses are an error.
fn epoch(module: &CachedModule, samples: &Tensor, by_ids: bool) -> Fallible<f64> {
    let before = module.counts().misses;
    let begin = Instant::now();
    for from in (0..EPOCH).step_by(BATCH) {
        let batch = samples.narrow(0, from, BATCH as i64);
        let output = if by_ids {
            let ids: Vec<u64> = (from as u64..from as u64 + BATCH as u64).collect();
            module.forward_with_ids(&batch, &ids)
        } else {
            module.forward(&batch)
        };
        black_box(output?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    if module.counts().misses > before { Err("an epoch of hits had misses".into()) } else { Ok(seconds) }
}

fn small_module(settings: &Settings, figures: &mut Vec<Figure>) -> Fallible {
    let (network, _variables) = perceptron();
    let module = cached_perceptron(&settings.dir)?;
    let samples = samples();
    let compute = || {
        let _guard = tch::no_grad_guard();
        for from in (0..EPOCH).step_by(BATCH) {
            let _output = black_box(network.forward(&samples.narrow(0, from, BATCH as i64)));
        }
    };
    for by_ids in [true, false] {
        let _first_epoch = epoch(&module, &samples, by_ids);
        module.flush()?;
        let (quartiles, ..) = paired(
            settings.rounds.min(15),
            || {
                compute();
                Ok(())
            },
            || epoch(&module, &samples, by_ids).map(|_| ()),
        )?;
        let way = if by_ids { "by ids" } else { "by content" };
        figures.push(Figure {
            what: format!("epoch 2 of a module of 3 MFLOP a sample, {way}"),
            control: "computing it".into(),
            ratio: 1.0 / quartiles[1],
            spread: (1.0 / quartiles[2], 1.0 / quartiles[0]),
            wanted: "≥ 3 times as fast".into(),
        });
        let mut speedups = Vec::new();
        for _ in 0..settings.rounds.min(7) {
            let begin = Instant::now();
            compute();
            let control = begin.elapsed().as_secs_f64();
            let child = Command::new(std::env::current_exe()?).env(CHILD, &settings.dir).arg(way).output()?;
            let text = String::from_utf8(child.stdout)?;
            let seconds = text.lines().find_map(|line| line.strip_prefix("seconds ")).ok_or("the child failed")?;
            speedups.push(control / seconds.parse::<f64>()?);
        }
        speedups.sort_by(f64::total_cmp);
        let at = |share: usize| speedups.get(speedups.len() * share / 4).copied().unwrap_or(f64::NAN);
        figures.push(Figure {
            what: format!("the same in a new process, {way}, opening and fingerprint included"),
            control: "computing it".into(),
            ratio: at(2),
            spread: (at(1), at(3)),
            wanted: "≥ 2 times as fast".into(),
        });
    }
    Ok(())
}

/// The new process, which opens the store and reads an epoch.
fn child(dir: &Path) -> Fallible {
    let samples = samples();
    let by_ids = std::env::args().any(|argument| argument == "by ids");
    // By then a training script has loaded libtorch and allocated memory.
    let _sum = black_box(samples.sum(Kind::Float));
    let begin = Instant::now();
    let module = cached_perceptron(dir)?;
    epoch(&module, &samples, by_ids)?;
    println!("seconds {}", begin.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> Fallible {
    tch::set_num_threads(1);
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    let settings = settings()?;
    let _former = std::fs::remove_dir_all(&settings.dir);
    std::fs::create_dir_all(&settings.dir)?;
    let mut figures = Vec::new();
    let all: [(&str, Group); 5] = [
        ("hits", hits),
        ("variables", many_variables),
        ("hashing", hashing),
        ("misses", misses),
        ("epochs", small_module),
    ];
    for (_, measure) in all.iter().filter(|(name, _)| settings.only.as_ref().is_none_or(|only| only == name)) {
        measure(&settings, &mut figures)?;
    }
    let mut table = String::from("| what | control | ratio | quartiles | wanted |\n| --- | --- | --- | --- | --- |\n");
    for Figure { what, control, ratio, spread, wanted } in figures {
        writeln!(table, "| {what} | {control} | {ratio:.3} | {:.3}–{:.3} | {wanted} |", spread.0, spread.1)?;
    }
    println!("{table}");
    if let Some(path) = &settings.report {
        std::fs::write(path, &table)?;
    }
    std::fs::remove_dir_all(&settings.dir)?;
    Ok(())
}
