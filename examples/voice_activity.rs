//! A TorchScript model, cached by content: silero-vad finds speech in overlapping windows of a recording.
//!
//! `scripts/with-torch --models cargo run --release -p tensorcask-examples --features torch --bin voice_activity [-- RECORDING.wav]`
//!
//! The windows have no ids, so their samples are the keys: a recording that was seen before, or a part of it, costs
//! only a lookup. The recording has to be 8 or 16 kHz, mono, 16 bits.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tch::{CModule, Kind, Tensor};
use tensorcask_torch::{CacheOptions, CachedModule, Inputs, WrapModules as _, init_logging};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const CHILD: &str = "TENSORCASK_EXAMPLE_CHILD";

/// Half-second windows that start a quarter second apart, `[windows, samples]`, and the sampling rate.
fn windows(path: &Path) -> Fallible<(Tensor, i64)> {
    let mut recording = hound::WavReader::open(path)?;
    let format = recording.spec();
    if format.channels != 1 || format.bits_per_sample != 16 || !matches!(format.sample_rate, 8000 | 16000) {
        return Err(format!("{} is {format:?}: 8 or 16 kHz, mono, 16 bits is needed", path.display()).into());
    }
    let samples = recording.samples::<i16>().map(|sample| Ok(f32::from(sample?) / 32768.0));
    let samples: Vec<f32> = samples.collect::<Result<_, hound::Error>>()?;
    let rate = i64::from(format.sample_rate);
    Ok((Tensor::from_slice(&samples).f_unfold(0, rate / 2, rate / 4)?.contiguous(), rate))
}

/// The cached model. Its method `audio_forward` resets the model's state for each call, and returns the probability of
/// speech in each 32 ms.
fn cached(cache_dir: &Path) -> Fallible<CachedModule> {
    let models = std::env::var_os("TENSORCASK_MODELS").ok_or("run this with scripts/with-torch --models")?;
    let model = CModule::load(PathBuf::from(models).join("silero-vad/silero_vad.jit"))?;
    Ok(CacheOptions::in_folder(cache_dir, "silero-vad").wrap_script_method(model, "audio_forward")?)
}

/// The greatest probability of speech in each window, computed in batches as from a stream.
fn speech(module: &CachedModule, windows: &Tensor, rate: i64) -> Fallible<(Vec<f64>, f64)> {
    let begin = Instant::now();
    let mut found = Vec::new();
    for batch in windows.split(16, 0) {
        let output = module.forward(Inputs::from(&batch).with(rate))?.into_tensor()?;
        found.push(output.amax([1].as_slice(), false).to_kind(Kind::Double));
    }
    Ok((Vec::try_from(&Tensor::cat(&found, 0))?, begin.elapsed().as_secs_f64()))
}

fn main() -> Fallible {
    init_logging()?;
    tch::set_num_threads(1);
    let spoken = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/spoken.wav");
    let (windows, rate) = windows(&std::env::args().nth(1).map_or(spoken, PathBuf::from))?;
    if let Some(cache_dir) = std::env::var_os(CHILD) {
        let module = cached(Path::new(&cache_dir))?;
        let (_, seconds) = speech(&module, &windows, rate)?;
        println!("new process: {seconds:.4} s, {} computed", module.counts().misses);
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let module = cached(folder.path())?;
    let (first, computed_s) = speech(&module, &windows, rate)?;
    println!("first pass: {computed_s:.3} s, {} windows computed", module.end_epoch().misses);
    let (second, cached_s) = speech(&module, &windows, rate)?;
    let computed = module.end_epoch().misses;
    println!("second pass: {cached_s:.4} s, {computed} computed: {:.0} times as fast", computed_s / cached_s);
    module.flush()?;
    let child =
        Command::new(std::env::current_exe()?).args(std::env::args().skip(1)).env(CHILD, folder.path()).output()?;
    print!("{}{}", String::from_utf8(child.stdout)?, String::from_utf8(child.stderr)?);
    let line: String = first.iter().map(|&p| if p > 0.5 { '#' } else { '.' }).collect();
    println!("speech, a mark for each quarter of a second:\n{line}");
    println!("both passes are the same: {}", first == second);
    module.close()?;
    if first == second && computed == 0 { Ok(()) } else { Err("the second pass differs".into()) }
}
