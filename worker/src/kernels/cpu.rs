//! The kernels on CPU cores: f32 activations, weights in any [`WeightFormat`].

use std::ops::Range;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use half::{bf16, f16};
use parking_lot::Mutex;

use self::attention::QueryRows;
use self::elementwise::{ActivateGatedTask, ActivateTask, NormaliseTask, RotateTask};
use self::instruction_set::InstructionSet;
pub use self::matrix::CpuMatrix;
use self::memory::PagedMemory;
use self::simd8::StoredFloat;
use self::threads::ThreadPool;
use super::{
    Activation, AttentionHeads, CacheFormat, CacheShape, KernelError, Kernels, NormWeights, RotaryLayout, TokenPlace,
    WeightFormat, blocks,
};
use crate::cpu_set::CpuSet;
use crate::logits_view::{BufferPool, LogitsTask};

mod activations;
mod attention;
mod elementwise;
mod instruction_set;
mod linear;
mod matrix;
mod memory;
mod packed_weights;
mod simd16;
mod simd8;
mod threads;

/// Below this many elements one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Kernels for the instruction set of this machine, and the threads they run on.
#[derive(Debug)]
pub struct CpuKernels {
    instructions: InstructionSet,
    threads: ThreadPool,
    /// Packed rows of the current product.
    words: Mutex<Vec<u32>>,
    /// Memory of kept rows.
    spare_rows: BufferPool<Vec<f32>>,
}

impl Default for CpuKernels {
    /// On the caller's thread alone.
    fn default() -> Self {
        Self::with(InstructionSet::detect(), ThreadPool::alone())
    }
}

impl CpuKernels {
    /// Kernels on `threads` threads, the caller's among them; 0 takes one for each core. With `cpus` each is pinned to
    /// one of them, as far as they go; the caller's only by [`Self::pin_caller`].
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(threads: usize, cpus: Option<&CpuSet>) -> std::io::Result<Self> {
        let count = match threads {
            0 => std::thread::available_parallelism()?.get(),
            threads => threads,
        };
        Ok(Self::with(InstructionSet::detect(), ThreadPool::new(count, cpus)?))
    }

    /// Kernels that use no instructions beyond the target's baseline, on the caller's thread.
    #[must_use]
    pub fn baseline() -> Self {
        Self::with(InstructionSet::Baseline, ThreadPool::alone())
    }

    /// Pins the calling thread to the CPU that the other threads left free, where they
    /// are pinned.
    pub fn pin_caller(&self) {
        self.threads.pin_caller();
    }

    /// Calls `work` with every item and its index, on the threads of the kernels.
    pub fn each<T: Send>(&self, items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        self.threads
            .chunks(items, 1, items.len() > 1, |index, item| item.iter_mut().for_each(|item| work(index, item)));
    }

    /// Calls `work` with every piece of `width` elements, on all threads if there are enough.
    fn each_row(&self, x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        self.threads.chunks(x, width, x.len() >= PARALLEL_FROM, work);
    }

    fn with(instructions: InstructionSet, threads: ThreadPool) -> Self {
        Self { instructions, threads, words: Mutex::default(), spare_rows: BufferPool::default() }
    }
}

/// Keys and values.
#[derive(Debug)]
pub struct CpuCache {
    shape: CacheShape,
    stored: StoredCache,
}

/// Keys, then values.
#[derive(Debug)]
enum StoredCache {
    F32([PagedMemory<f32>; 2]),
    F16([PagedMemory<f16>; 2]),
    Bf16([PagedMemory<bf16>; 2]),
}

impl Kernels for CpuKernels {
    type Buffer = Vec<f32>;
    type Matrix = CpuMatrix;
    type Cache = CpuCache;

    fn buffer(&self, elements: usize) -> Result<Vec<f32>, KernelError> {
        let mut values = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| KernelError::OutOfMemory { elements })?;
        values.resize(elements, 0.0);
        Ok(values)
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<CpuMatrix, KernelError> {
        CpuMatrix::new(weights, format, &self.threads)
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<CpuMatrix, KernelError> {
        blocks::check(format, shape, blocks)?;
        CpuMatrix::from_blocks(format, shape, blocks, &self.threads)
    }

    fn cache(&self, shape: CacheShape) -> Result<CpuCache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        let stored = match shape.format {
            CacheFormat::F32 => StoredCache::F32([PagedMemory::zeros(elements)?, PagedMemory::zeros(elements)?]),
            CacheFormat::F16 => StoredCache::F16([PagedMemory::zeros(elements)?, PagedMemory::zeros(elements)?]),
            CacheFormat::Bf16 => StoredCache::Bf16([PagedMemory::zeros(elements)?, PagedMemory::zeros(elements)?]),
        };
        Ok(CpuCache { shape, stored })
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f32>) -> Result<(), KernelError> {
        buffer[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &Vec<f32>, values: &mut [f32]) -> Result<(), KernelError> {
        values.copy_from_slice(&buffer[..values.len()]);
        Ok(())
    }

    fn embed(&self, table: &CpuMatrix, ids: &[u32], out: &mut Vec<f32>) {
        table.embed(ids, out);
    }

    fn select(&self, x: &Vec<f32>, width: usize, rows: &[usize], out: &mut Vec<f32>) {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn norm(&self, x: &Vec<f32>, rows: usize, norm: NormWeights<'_, Vec<f32>>, out: &mut Vec<f32>) {
        let NormWeights { kind, epsilon, width, weight, bias } = norm;
        self.each_row(&mut out[..rows * width], width, |row, out| {
            let x = &x[row * width..][..width];
            let bias = bias.map(Vec::as_slice);
            self.instructions.run(NormaliseTask { kind, epsilon: epsilon as f32, x, weight, bias, out });
        });
    }

    fn linear(&self, x: &Vec<f32>, rows: usize, weight: &CpuMatrix, bias: Option<&Vec<f32>>, out: &mut Vec<f32>) {
        let mut words = self.words.lock();
        weight.linear((self.instructions, &self.threads), (x, rows), bias.map(Vec::as_slice), (out, &mut words));
    }

    fn rotate(
        &self,
        qkv: &mut Vec<f32>,
        rows: usize,
        heads: AttentionHeads,
        rotary: RotaryLayout,
        angles: &Vec<f32>,
    ) {
        let width = heads.qkv_width();
        self.each_row(&mut qkv[..rows * width], width, |row, qkv| {
            let angles = &angles[row * rotary.width..][..rotary.width];
            let heads_rotated = &mut qkv[..heads.query_width() + heads.kv_width()];
            self.instructions.run(RotateTask { rotary, head_width: heads.width, angles, heads: heads_rotated });
        });
    }

    fn append(
        &self,
        qkv: &Vec<f32>,
        heads: AttentionHeads,
        places: &[TokenPlace<'_>],
        cache: &mut CpuCache,
        layer: usize,
    ) {
        match &mut cache.stored {
            StoredCache::F32(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
            StoredCache::F16(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
            StoredCache::Bf16(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
        }
    }

    fn attend(
        &self,
        qkv: &Vec<f32>,
        heads: AttentionHeads,
        window: Option<usize>,
        places: &[TokenPlace<'_>],
        (cache, layer): (&CpuCache, usize),
        out: &mut Vec<f32>,
    ) {
        let (on, rows, layer) =
            ((self.instructions, &self.threads), QueryRows { qkv, heads, window, places }, (&cache.shape, layer));
        match &cache.stored {
            StoredCache::F32(stored) => attention::attend(on, rows, layer, stored, out),
            StoredCache::F16(stored) => attention::attend(on, rows, layer, stored, out),
            StoredCache::Bf16(stored) => attention::attend(on, rows, layer, stored, out),
        }
    }

    fn activate(&self, activation: Activation, x: &mut Vec<f32>, elements: usize) {
        self.each_row(&mut x[..elements], PARALLEL_FROM / 4, |_, x| {
            self.instructions.run(ActivateTask { activation, x })
        });
    }

    fn activate_gated(&self, activation: Activation, x: &Vec<f32>, rows: usize, inner: usize, out: &mut Vec<f32>) {
        self.each_row(&mut out[..rows * inner], inner, |row, out| {
            let (gate, up) = x[row * 2 * inner..][..2 * inner].split_at(inner);
            self.instructions.run(ActivateGatedTask { activation, gate, up, out });
        });
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, elements: usize) {
        for (x, y) in x[..elements].iter_mut().zip(y) {
            *x += y;
        }
    }

    fn add_rows(&self, x: &mut Vec<f32>, width: usize, rows: &[usize], columns: Range<usize>, y: &Vec<f32>) {
        for (&row, y) in rows.iter().zip(y.chunks_exact(columns.len())) {
            let x = &mut x[row * width..][columns.clone()];
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }

    fn read_rows(
        &self,
        logits: &Vec<f32>,
        vocabulary: usize,
        tasks: &mut [LogitsTask<'_>],
    ) -> Result<Duration, KernelError> {
        let began = Instant::now();
        self.each(tasks, |row, task| task.read(&logits[row * vocabulary..][..vocabulary], &self.spare_rows));
        Ok(began.elapsed())
    }
}

fn append<W: StoredFloat>(
    qkv: &[f32],
    heads: AttentionHeads,
    places: &[TokenPlace<'_>],
    (shape, layer): (&CacheShape, usize),
    [keys, values]: &mut [PagedMemory<W>; 2],
) {
    let width = heads.kv_width();
    for (row, &place) in qkv.chunks_exact(heads.qkv_width()).zip(places) {
        let at = shape.offset(layer, place);
        let (key, value) = row[heads.query_width()..].split_at(width);
        keys[at..][..width].iter_mut().zip(key).for_each(|(to, &from)| *to = W::narrow(from));
        values[at..][..width].iter_mut().zip(value).for_each(|(to, &from)| *to = W::narrow(from));
    }
}
