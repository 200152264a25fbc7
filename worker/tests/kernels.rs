//! The fast kernels against the plain f64 ones, on fresh random shapes, and a row alone against the row in company.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use cosec_worker::cpu_set::CpuSet;
use cosec_worker::kernels::candle::Candle;
use cosec_worker::kernels::cpu::Cpu;
use cosec_worker::kernels::reference::Reference;
use cosec_worker::kernels::{
    Activation, CacheFormat, CacheShape, Heads, Kernels, NormKind, NormWeights, Pairs, Place, RotaryLayout,
    WeightFormat,
};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

/// Runs `test` on fresh seeds and prints the one that fails.
fn with_seeds(test: impl Fn(&mut StdRng) + std::panic::RefUnwindSafe) {
    for _ in 0..20 {
        let seed: u64 = rand::random();
        let run = std::panic::catch_unwind(|| test(&mut StdRng::seed_from_u64(seed)));
        assert!(run.is_ok(), "seed {seed}");
    }
}

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn matrix(values: &[f32], rows: usize) -> Tensor {
    let columns = values.len() / rows;
    Tensor::from_slice(values, (rows, columns), &Device::Cpu).unwrap()
}

const FORMATS: [WeightFormat; 5] =
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q4K];

fn upload<K: Kernels>(kernels: &K, values: &[f32]) -> K::Buffer {
    let mut buffer = kernels.buffer(values.len()).unwrap();
    kernels.write(values, &mut buffer).unwrap();
    buffer
}

fn download<K: Kernels>(kernels: &K, buffer: &K::Buffer, len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    kernels.read(buffer, &mut values).unwrap();
    values
}

/// Both kinds of CPU kernels within `tolerance` of the reference.
fn check_cpu(tolerance: f32, compute: &impl Compute) {
    let expected = compute.with(&Reference);
    compare("detected", tolerance, &compute.with(&Cpu::default()), &expected);
    compare("baseline", tolerance, &compute.with(&Cpu::baseline()), &expected);
}

/// All kernels within `tolerance` of the reference.
fn check(tolerance: f32, compute: impl Compute) {
    check_cpu(tolerance, &compute);
    compare("candle", tolerance, &compute.with(&candle()), &compute.with(&Reference));
}

/// Within `tolerance`, relative to what is above 1.
fn compare(name: &str, tolerance: f32, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{name}, element {i}: {found}, not {expected}");
    }
}

/// What runs on GPUs, here on the CPU.
fn candle() -> Candle {
    Candle::new(Device::Cpu)
}

/// A computation on any kernels.
trait Compute {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32>;
}

struct Linear {
    x: Vec<f32>,
    rows: usize,
    weight: Tensor,
    format: WeightFormat,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn random(rng: &mut StdRng, format: WeightFormat) -> Self {
        let (rows, inputs, outputs) = (rng.random_range(1..131), rng.random_range(1..600), rng.random_range(1..100));
        Self::shaped(rng, format, (rows, inputs, outputs))
    }

    fn shaped(rng: &mut StdRng, format: WeightFormat, (rows, inputs, outputs): (usize, usize, usize)) -> Self {
        let weight = matrix(&random(rng, inputs * outputs), outputs);
        let bias = rng.random::<bool>().then(|| random(rng, outputs));
        Self { x: random(rng, rows * inputs), rows, weight, format, bias }
    }
}

impl Compute for Linear {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let len = self.rows * self.weight.dims()[0];
        let mut out = kernels.buffer(len).unwrap();
        let bias = self.bias.as_ref().map(|bias| upload(kernels, bias));
        let weight = kernels.matrix(&self.weight, self.format).unwrap();
        kernels.linear(&upload(kernels, &self.x), self.rows, &weight, bias.as_ref(), &mut out);
        download(kernels, &out, len)
    }
}

/// Floats: the roundings of a chain of 600 products of numbers below 1. Quantised weights: an activation is rounded to
/// one part in 65,534 of the largest beside it, or to one in 254.
fn tolerance(format: WeightFormat) -> f32 {
    match format {
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => 5e-5,
        WeightFormat::Q8_0 => 1e-3,
        WeightFormat::Q4K => 0.3,
    }
}

/// The distance of two results in L2.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

#[test]
fn linear_agrees() {
    with_seeds(|rng| {
        for format in FORMATS {
            check_cpu(tolerance(format), &Linear::random(rng, format));
        }
    });
}

/// In relative L2 to what products of this size usually are. Floats: activations are what the weights' type can hold, and
/// what remains is the rounding of sums to that type. Quantised weights: activations of 8 bits.
#[test]
fn linear_is_close_on_candle() {
    with_seeds(|rng| {
        for (format, dtype, bound) in [
            (WeightFormat::F32, DType::F32, 1e-5),
            (WeightFormat::Bf16, DType::BF16, 1.0 / 64.0),
            (WeightFormat::F16, DType::F16, 1.0 / 512.0),
            (WeightFormat::Q8_0, DType::F32, 2e-2),
            (WeightFormat::Q4K, DType::F32, 2e-2),
        ] {
            let linear = Linear::random(rng, format);
            let x = matrix(&linear.x, linear.rows).to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let linear = Linear { x: x.flatten_all().unwrap().to_vec1().unwrap(), ..linear };
            let (found, expected) = (linear.with(&candle()), linear.with(&Reference));
            assert_eq!(found.len(), expected.len());
            let error = distance(&found, &expected);
            // A product of numbers in [-1, 1] has a mean square of 1/9.
            let usual = (found.len() * linear.x.len() / linear.rows) as f32 / 9.0;
            assert!(error <= bound * usual.sqrt(), "{format:?}: {error} of {usual}");
        }
    });
}

/// The product with the quantised weights themselves: beside eight bits the activations cost next to nothing.
#[test]
fn rounding_activations_to_16_bits_costs_little() {
    with_seeds(|rng| {
        let linear = Linear { bias: None, ..Linear::random(rng, WeightFormat::Q8_0) };
        let (found, expected) = (linear.with(&Cpu::default()), linear.with(&Reference));
        let length = distance(&expected, &vec![0.0; expected.len()]);
        assert!(distance(&found, &expected) <= 5e-5 * length.max(1.0));
    });
}

/// llama.cpp rounds activations beside Q4_K to one part in 254 of the largest of 256; here it is the largest of 32.
#[test]
fn rounding_activations_to_8_bits_costs_less_than_in_llama_cpp() {
    with_seeds(|rng| {
        let (rows, inputs, outputs) = (3, 768, 90);
        let mut linear = Linear { bias: None, ..Linear::shaped(rng, WeightFormat::Q4K, (rows, inputs, outputs)) };
        for part in linear.x.chunks_mut(32) {
            let size = rng.random_range(0.1..1.0);
            part.iter_mut().for_each(|x| *x *= size);
        }
        let (found, expected) = (linear.with(&Cpu::default()), linear.with(&Reference));
        for part in linear.x.chunks_mut(256) {
            let scale = part.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())) / 127.0;
            part.iter_mut().for_each(|x| *x = (*x / scale).round() * scale);
        }
        let (ours, theirs) = (distance(&found, &expected), distance(&linear.with(&Reference), &expected));
        assert!(ours <= theirs, "{ours}, not at most {theirs}");
    });
}

#[test]
fn linear_rows_do_not_depend_on_their_company() {
    with_seeds(|rng| {
        for format in FORMATS {
            let many = Linear::random(rng, format);
            let inputs = many.x.len() / many.rows;
            let together = many.with(&Cpu::default());
            let outputs = together.len() / many.rows;
            for (row, x) in many.x.chunks_exact(inputs).enumerate() {
                let (weight, bias) = (many.weight.clone(), many.bias.clone());
                let one = Linear { x: x.to_vec(), rows: 1, weight, format, bias };
                assert_eq!(one.with(&Cpu::default()), &together[row * outputs..][..outputs], "row {row}");
            }
        }
    });
}

/// Large enough to be spread over threads.
#[test]
fn linear_does_not_depend_on_threads() {
    let mut rng = StdRng::seed_from_u64(rand::random());
    let (inputs, outputs, rows) = (515, 1031, 5);
    for format in FORMATS {
        let weight = matrix(&random(&mut rng, inputs * outputs), outputs);
        let linear = Linear { x: random(&mut rng, rows * inputs), rows, weight, format, bias: None };
        let alone = linear.with(&Cpu::new(1, None).unwrap());
        assert_eq!(alone, linear.with(&Cpu::new(3, None).unwrap()));
        // Nothing is pinned where the system cannot.
        let pinned = Cpu::new(3, CpuSet::available().ok().as_ref()).unwrap();
        assert_eq!(alone, linear.with(&pinned));
        check_cpu(tolerance(format), &linear);
    }
}

/// The CPUs that each thread of a pool may run on.
#[cfg(target_os = "linux")]
fn places(threads: usize, cpus: Option<&CpuSet>) -> Vec<Option<CpuSet>> {
    let kernels = Cpu::new(threads, cpus).unwrap();
    kernels.settle_caller();
    // A thread that has taken an item waits, so that every one takes one.
    let (mut places, all_there) = (vec![None; threads], std::sync::Barrier::new(threads));
    kernels.each(&mut places, |_, place| {
        all_there.wait();
        *place = Some(CpuSet::available().unwrap());
    });
    places
}

#[test]
#[cfg(target_os = "linux")]
fn threads_are_pinned_to_a_cpu_each() {
    let cpus = CpuSet::available().unwrap();
    // The thread of the caller is pinned for good.
    let pinned = std::thread::scope(|scope| scope.spawn(|| places(cpus.count(), Some(&cpus))).join().unwrap());
    assert!(cpus.each().all(|cpu| pinned.contains(&Some(cpu))), "{pinned:?} on {cpus}");
    assert_eq!(places(3, None), vec![Some(cpus); 3]);
}

struct Normed {
    kind: NormKind,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Compute for Normed {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let width = self.weight.len();
        let (weight, bias) = (upload(kernels, &self.weight), self.bias.as_ref().map(|bias| upload(kernels, bias)));
        let norm = NormWeights { kind: self.kind, epsilon: 1e-5, width, weight: &weight, bias: bias.as_ref() };
        let mut out = kernels.buffer(self.x.len()).unwrap();
        kernels.norm(&upload(kernels, &self.x), self.x.len() / width, norm, &mut out);
        download(kernels, &out, self.x.len())
    }
}

#[test]
fn norms_agree() {
    with_seeds(|rng| {
        let (rows, width) = (rng.random_range(1..5), rng.random_range(2..500));
        let (x, weight) = (random(rng, rows * width), random(rng, width));
        check(1e-5, Normed { kind: NormKind::RootMeanSquare, x: x.clone(), weight: weight.clone(), bias: None });
        check(1e-5, Normed { kind: NormKind::Layer, x, weight, bias: Some(random(rng, width)) });
    });
}

struct Activated(Activation, Vec<f32>);

impl Compute for Activated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let mut x = upload(kernels, &self.1);
        kernels.activate(self.0, &mut x, self.1.len());
        download(kernels, &x, self.1.len())
    }
}

struct Gated(Activation, Vec<f32>, usize);

impl Compute for Gated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let len = self.1.len() / 2;
        let mut out = kernels.buffer(len).unwrap();
        kernels.activate_gated(self.0, &upload(kernels, &self.1), len / self.2, self.2, &mut out);
        download(kernels, &out, len)
    }
}

#[test]
fn activations_agree() {
    with_seeds(|rng| {
        for activation in [Activation::Silu, Activation::GeluErf, Activation::GeluTanh] {
            let (rows, inner) = (rng.random_range(1..4), rng.random_range(1..100));
            let mut x: Vec<f32> = random(rng, 2 * rows * inner).into_iter().map(|x| 12.0 * x).collect();
            check(1e-6, Gated(activation, x.clone(), inner));
            x.extend([0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 1e-30]);
            check(1e-6, Activated(activation, x));
        }
    });
}

struct Rotated {
    qkv: Vec<f32>,
    rows: usize,
    heads: Heads,
    rotary: RotaryLayout,
    angles: Vec<f32>,
}

impl Compute for Rotated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let mut qkv = upload(kernels, &self.qkv);
        kernels.rotate(&mut qkv, self.rows, self.heads, self.rotary, &upload(kernels, &self.angles));
        download(kernels, &qkv, self.qkv.len())
    }
}

fn heads(rng: &mut StdRng) -> Heads {
    let kv = rng.random_range(1..4);
    Heads { query: kv * rng.random_range(1..4), kv, width: 2 * rng.random_range(1..40) }
}

#[test]
fn rotations_agree() {
    with_seeds(|rng| {
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let (heads, rows) = (heads(rng), rng.random_range(1..5));
            let width = 2 * rng.random_range(1..=heads.width / 2);
            let (qkv, angles) = (random(rng, rows * heads.qkv_width()), random(rng, rows * width));
            check(1e-6, Rotated { qkv, rows, heads, rotary: RotaryLayout { width, pairs }, angles });
        }
    });
}

/// One sequence, appended in chunks of rows into a cache of given blocks.
struct Attended {
    qkv: Vec<f32>,
    heads: Heads,
    window: Option<usize>,
    format: CacheFormat,
    block_tokens: usize,
    blocks: Vec<u32>,
    chunk: usize,
}

impl Compute for Attended {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let (blocks, kv_width) = (self.blocks.len(), self.heads.kv_width());
        let shape = CacheShape { layers: 2, blocks, block_tokens: self.block_tokens, kv_width, format: self.format };
        let mut cache = kernels.cache(shape).unwrap();
        let mut found = Vec::new();
        let width = self.heads.qkv_width();
        for (index, rows) in self.qkv.chunks(self.chunk * width).enumerate() {
            let first = index * self.chunk;
            let place = |position| Place { position, blocks: self.blocks.as_slice() };
            let places: Vec<Place<'_>> = (first..first + rows.len() / width).map(place).collect();
            let qkv = upload(kernels, rows);
            let len = places.len() * self.heads.query_width();
            let mut out = kernels.buffer(len).unwrap();
            kernels.append(&qkv, self.heads, &places, &mut cache, 1);
            kernels.attend(&qkv, self.heads, self.window, &places, (&cache, 1), &mut out);
            found.extend(download(kernels, &out, len));
        }
        found
    }
}

#[test]
fn attention_agrees_and_does_not_depend_on_chunks_or_blocks() {
    with_seeds(|rng| {
        let (heads, rows) = (heads(rng), rng.random_range(1..90));
        // Large scores, so that the running maximum changes.
        let qkv: Vec<f32> = random(rng, rows * heads.qkv_width()).into_iter().map(|x| 3.0 * x).collect();
        let window = rng.random::<bool>().then(|| rng.random_range(1..rows + 2));
        let format = *[CacheFormat::F32, CacheFormat::F16, CacheFormat::Bf16].choose(rng).unwrap();
        let attended = |rng: &mut StdRng| {
            let block_tokens = rng.random_range(1..20);
            let mut blocks: Vec<u32> = (0..rows.div_ceil(block_tokens) as u32 + 3).collect();
            blocks.shuffle(rng);
            let chunk = rng.random_range(1..=rows);
            Attended { qkv: qkv.clone(), heads, window, format, block_tokens, blocks, chunk }
        };
        let (one, other) = (attended(rng), attended(rng));
        assert_eq!(one.with(&Cpu::default()), other.with(&Cpu::default()));
        check(2e-5, one);
    });
}

#[test]
fn selected_and_embedded_rows_are_exact() {
    let (cpu, table) = (Cpu::default(), [1.0, -2.5, 3.0, 0.25, 7.0, -0.5]);
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16] {
        let mut out = cpu.buffer(4).unwrap();
        cpu.embed(&cpu.matrix(&matrix(&table, 3), format).unwrap(), &[2, 0], &mut out);
        assert_eq!(out, [7.0, -0.5, 1.0, -2.5]);
        cpu.select(&table.to_vec(), 2, &[1, 1], &mut out);
        assert_eq!(out, [3.0, 0.25, 3.0, 0.25]);
    }
}

struct Embedded(Tensor, WeightFormat, Vec<u32>);

impl Compute for Embedded {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let Self(table, format, ids) = self;
        let len = ids.len() * table.dims()[1];
        let mut out = kernels.buffer(len).unwrap();
        kernels.embed(&kernels.matrix(table, *format).unwrap(), ids, &mut out);
        download(kernels, &out, len)
    }
}

/// One rounding of the difference in Q4_K; the others are exact.
#[test]
fn embedded_rows_are_what_the_blocks_stand_for() {
    with_seeds(|rng| {
        for format in FORMATS {
            let (rows, width) = (rng.random_range(1..40), rng.random_range(1..600));
            let ids = (0..5).map(|_| rng.random_range(0..rows as u32)).collect();
            check(2e-7, Embedded(matrix(&random(rng, rows * width), rows), format, ids));
        }
    });
}

/// Rows picked out, and rows added to: some of the columns of some of the rows.
struct Updated {
    x: Vec<f32>,
    width: usize,
    rows: Vec<usize>,
    columns: Range<usize>,
    y: Vec<f32>,
}

impl Compute for Updated {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32> {
        let Self { x, width, rows, columns, y } = self;
        let mut sum = upload(kernels, x);
        kernels.add_rows(&mut sum, *width, rows, columns.clone(), &upload(kernels, y));
        kernels.add_rows(&mut sum, *width, &[], columns.clone(), &upload(kernels, y));
        let mut picked = kernels.buffer(rows.len() * width).unwrap();
        kernels.select(&sum, *width, rows, &mut picked);
        kernels.select(&sum, *width, &[], &mut picked);
        [download(kernels, &sum, x.len()), download(kernels, &picked, rows.len() * width)].concat()
    }
}

#[test]
fn updated_rows_agree() {
    with_seeds(|rng| {
        let (count, width) = (rng.random_range(1..20), rng.random_range(1..50));
        let mut rows: Vec<usize> = (0..count).collect();
        rows.shuffle(rng);
        rows.truncate(rng.random_range(1..=count));
        let first = rng.random_range(0..width);
        let columns = first..rng.random_range(first + 1..=width);
        let y = random(rng, rows.len() * columns.len());
        check(1e-6, Updated { x: random(rng, count * width), width, rows, columns, y });
    });
}

const HEADS: Heads = Heads { query: 4, kv: 2, width: 6 };
const SHAPE: CacheShape =
    CacheShape { layers: 2, blocks: 40, block_tokens: 4, kv_width: 12, format: CacheFormat::F32 };

/// Rows of one sequence that are new in a step.
struct Chunk {
    start: usize,
    rows: usize,
    blocks: Vec<u32>,
}

/// What attention finds for the rows of each step, layer after layer.
fn attended<K: Kernels>(kernels: &K, steps: &[(Vec<Chunk>, Vec<f32>)], windows: [Option<usize>; 2]) -> Vec<f32> {
    let mut cache = kernels.cache(SHAPE).unwrap();
    let mut all = Vec::new();
    for (chunks, values) in steps {
        let rows = |chunk: &'_ Chunk| chunk.start..chunk.start + chunk.rows;
        let places: Vec<Place<'_>> = chunks
            .iter()
            .flat_map(|chunk| rows(chunk).map(|position| Place { position, blocks: &chunk.blocks }))
            .collect();
        let mut qkv = kernels.buffer(values.len()).unwrap();
        kernels.write(values, &mut qkv).unwrap();
        for (layer, window) in windows.into_iter().enumerate() {
            let mut found = vec![0.0; places.len() * HEADS.query_width()];
            let mut out = kernels.buffer(found.len()).unwrap();
            kernels.append(&qkv, HEADS, &places, &mut cache, layer);
            kernels.attend(&qkv, HEADS, window, &places, (&cache, layer), &mut out);
            kernels.read(&out, &mut found).unwrap();
            all.extend(found);
        }
    }
    all
}

/// Sequences that grow by chunks of different sizes, in batches of changing order, whatever fits at a time.
#[test]
fn ragged_batches_agree_whatever_fits() {
    let seed: u64 = rand::random();
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut blocks: Vec<u32> = (0..40).collect();
    blocks.shuffle(rng);
    let mut lengths = [0; 5];
    let steps: Vec<_> = (0..6)
        .map(|_| {
            let mut order: Vec<usize> = (0..5).collect();
            order.shuffle(rng);
            let mut chunks = Vec::new();
            for sequence in order {
                let rows = *[0, 1, 1, 2, 5].get(rng.random_range(0..5)).unwrap();
                if rows > 0 {
                    let blocks = blocks[8 * sequence..][..8].to_vec();
                    chunks.push(Chunk { start: lengths[sequence], rows, blocks });
                    lengths[sequence] += rows;
                }
            }
            let rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
            let values = (0..rows * HEADS.qkv_width()).map(|_| rng.random_range(-2.0..2.0)).collect();
            (chunks, values)
        })
        .filter(|(chunks, _): &(Vec<Chunk>, Vec<f32>)| !chunks.is_empty())
        .collect();
    let windows = [None, Some(rng.random_range(1..12))];
    let expected = attended(&Reference, &steps, windows);
    for attention_elements in [1, 100, 700, 1 << 27] {
        let kernels = candle().with_attention_elements(attention_elements);
        let found = attended(&kernels, &steps, windows);
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && worst < 2e-5, "seed {seed}, {attention_elements}: {worst}");
    }
}

/// Padding must not carry what another sequence left behind.
#[test]
fn a_broken_sequence_breaks_no_other() {
    let kernels = candle();
    let chunk = |rows, block, start| Chunk { start, rows, blocks: vec![block] };
    let values = |rows: usize, value: f32| vec![value; rows * HEADS.qkv_width()];
    let steps = [
        (vec![chunk(3, 0, 0)], values(3, f32::NAN)),
        (vec![chunk(3, 1, 0)], values(3, 1.0)),
        (vec![chunk(1, 0, 3), chunk(1, 1, 3), chunk(1, 2, 0)], [values(1, f32::NAN), values(2, 1.0)].concat()),
    ];
    let found = attended(&kernels, &steps, [None, Some(2)]);
    let last = &found[found.len() - 3 * HEADS.query_width()..];
    assert!(last[..HEADS.query_width()].iter().all(|value| value.is_nan()));
    assert!(last[HEADS.query_width()..].iter().all(|value| (value - 1.0).abs() < 1e-6), "{last:?}");
}

/// The failure waits for whoever reads next, and is told once.
#[test]
fn candle_keeps_the_first_failure() {
    let kernels = candle();
    let (short, mut out) = (upload(&kernels, &[1.0; 3]), upload(&kernels, &[7.0; 2]));
    kernels.activate(Activation::Silu, &mut out, 3);
    kernels.add(&mut out, &short, 2);
    let mut values = [0.0; 2];
    assert!(kernels.read(&out, &mut values).unwrap_err().to_string().contains("device: "));
    assert_eq!((kernels.read(&out, &mut values), values), (Ok(()), [8.0; 2]));
    kernels.activate(Activation::Silu, &mut out, 3);
    assert!(kernels.read(&out, &mut []).is_err());
    assert!(
        kernels
            .cache(CacheShape { layers: 1, blocks: 1 << 30, block_tokens: 8, kv_width: 0, format: CacheFormat::F32 })
            .is_err()
    );
}

#[test]
fn blocks_of_a_file_are_the_weights_they_stand_for() {
    let mut rng = StdRng::seed_from_u64(rand::random());
    let (outputs, inputs) = (37, 512);
    let (weight, x) = (matrix(&random(&mut rng, outputs * inputs), outputs), random(&mut rng, inputs));
    for (format, dtype) in [(WeightFormat::Q8_0, GgmlDType::Q8_0), (WeightFormat::Q4K, GgmlDType::Q4K)] {
        let blocks = QTensor::quantize(&weight, dtype).unwrap().data().unwrap().into_owned();
        for kernels in [Cpu::default(), Cpu::baseline()] {
            let product = |weight| {
                let mut out = kernels.buffer(outputs).unwrap();
                kernels.linear(&x, 1, &weight, None, &mut out);
                out
            };
            let stored = kernels.matrix_from_blocks(format, [outputs, inputs], &blocks).unwrap();
            assert_eq!(product(stored), product(kernels.matrix(&weight, format).unwrap()));
            for (shape, bytes) in [([outputs, inputs], 1..), ([outputs + 1, inputs], 0..), ([outputs, 600], 0..)] {
                assert!(kernels.matrix_from_blocks(format, shape, &blocks[bytes]).is_err());
            }
            assert!(kernels.matrix_from_blocks(WeightFormat::F32, [1, 1], &[0; 4]).is_err());
        }
    }
}

/// All 16-bit patterns, so that subnormals, infinities and NaN are among them.
#[test]
fn half_precision_widens_exactly() {
    let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [DType::F16, DType::BF16] {
        let table = Tensor::from_raw_buffer(&bits, dtype, &[1 << 13, 8], &Device::Cpu).unwrap();
        let expected: Vec<f32> = table.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for cpu in [Cpu::default(), Cpu::baseline()] {
            // A product with a row of the identity picks one column out.
            for column in 0..8 {
                let mut x = vec![0.0; 8];
                x[column] = 1.0;
                let mut out = cpu.buffer(1 << 13).unwrap();
                cpu.linear(&x, 1, &cpu.matrix(&table, WeightFormat::of(dtype)).unwrap(), None, &mut out);
                for (row, found) in out.iter().enumerate() {
                    let values = &expected[8 * row..][..8];
                    // Infinity times zero is no number.
                    if values.iter().all(|value| value.is_finite()) {
                        assert_eq!(*found, values[column], "row {row}, column {column}");
                    } else {
                        assert!(!found.is_finite(), "row {row}, column {column}");
                    }
                }
            }
        }
    }
}
