//! The fast kernels against the f64 reference on fresh random shapes, and the same bits for a row alone or in a batch.
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{Device, Tensor};
use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::kernels::cuda::CudaKernels;
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::kernels::{AttentionHeads, Kernels, WeightFormat};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod attention;
mod cuda;
mod elementwise;
mod linear;
mod row_tasks;
mod rows;
mod threads;

/// Runs `test` on fresh seeds and prints the one that fails.
pub(crate) fn with_seeds(test: impl Fn(&mut StdRng)) {
    for _ in 0..20 {
        let seed: u64 = rand::random();
        let run = catch_unwind(AssertUnwindSafe(|| test(&mut StdRng::seed_from_u64(seed))));
        assert!(run.is_ok(), "seed {seed}");
    }
}

pub(crate) fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

pub(crate) fn matrix(values: &[f32], rows: usize) -> Tensor {
    let columns = values.len() / rows;
    Tensor::from_slice(values, (rows, columns), &Device::Cpu).unwrap()
}

pub(crate) const FORMATS: [WeightFormat; 5] =
    [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q4K];

pub(crate) fn upload<K: Kernels>(kernels: &K, values: &[f32]) -> K::Buffer {
    let mut buffer = kernels.buffer(values.len()).unwrap();
    kernels.write(values, &mut buffer).unwrap();
    buffer
}

pub(crate) fn download<K: Kernels>(kernels: &K, buffer: &K::Buffer, len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    kernels.read(buffer, &mut values).unwrap();
    values
}

/// Both kinds of CPU kernels within `tolerance` of the reference.
pub(crate) fn check_cpu(tolerance: f32, compute: &impl Compute) {
    let expected = compute.with(&ReferenceKernels);
    compare("detected", tolerance, &compute.with(&CpuKernels::default()), &expected);
    compare("baseline", tolerance, &compute.with(&CpuKernels::baseline()), &expected);
}

/// All kernels within `tolerance` of the reference.
pub(crate) fn check(tolerance: f32, compute: impl Compute) {
    check_cpu(tolerance, &compute);
    on_gpu(|cuda| compare("cuda", tolerance, &compute.with(cuda), &compute.with(&ReferenceKernels)));
}

/// Calls `test` with the first GPU if `COSEC_TEST_GPU` is set: for tests that are also useful without one.
pub(crate) fn on_gpu(test: impl FnOnce(&CudaKernels)) {
    if std::env::var_os("COSEC_TEST_GPU").is_some() {
        with_gpu(test);
    }
}

/// Calls `test` with the first GPU, one test at a time.
pub(crate) fn with_gpu(test: impl FnOnce(&CudaKernels)) {
    static GPU: Mutex<Option<CudaKernels>> = Mutex::new(None);
    let mut gpu = GPU.lock();
    test(gpu.get_or_insert_with(|| CudaKernels::open(0, CpuKernels::default()).unwrap()));
}

/// Whether the GPU is the one of `tests/gpu_stand_in`, which is slow.
pub(crate) fn is_stand_in(cuda: &CudaKernels) -> bool {
    cuda.name().starts_with("stand-in")
}

/// Within `tolerance`, relative for values above 1.
pub(crate) fn compare(name: &str, tolerance: f32, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{name}, element {i}: {found}, not {expected}");
    }
}

/// A computation on any kernels.
pub(crate) trait Compute {
    fn with<K: Kernels>(&self, kernels: &K) -> Vec<f32>;
}

pub(crate) fn heads(rng: &mut StdRng) -> AttentionHeads {
    let kv = rng.random_range(1..4);
    AttentionHeads { query: kv * rng.random_range(1..10), kv, width: 2 * rng.random_range(1..40) }
}
