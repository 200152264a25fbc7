//! The kernels on an NVIDIA GPU.
//!
//! The driver and NVRTC are found when a worker starts for a GPU; nothing of CUDA is needed to build one. The programs in
//! `cuda/*.cu` are compiled then.
//!
//! Activations are f32. Weights in f32 multiply them as they are. Weights in 16 bits multiply activations that are rounded
//! to their type, and quantised weights, rounded to bfloat16, ones that are rounded to bfloat16; sums are f32. Attention
//! over a cache of 16 bits rounds queries and weights to the cache's type.
//!
//! Operations are queued; the first failure is kept until [`Kernels::read`] asks.

use std::cell::RefCell;
use std::ops::Range;
use std::time::Duration;

use candle_core::Tensor;
use cudarc::driver::CudaSlice;

use self::attention::{Layer, Prepared};
use self::gpu::{Address, Gpu, Size};
pub use self::matrix::Matrix;
use self::matrix::{Product, Rounding};
use self::program::Program;
use self::reader::Reader;
pub(crate) use self::reader::Row;
use super::cpu::Cpu;
use super::{
    Activation, CacheFormat, CacheShape, Heads, KernelError, Kernels, NormKind, NormWeights, Pairs, Place,
    RotaryLayout, WeightFormat,
};
use crate::rows::{KeptRow, RowTask};

mod attention;
mod gpu;
mod matrix;
mod profile;
pub mod program;
mod reader;
mod rows;

/// As `elementwise.cu` has it.
const NORM_THREADS: u32 = 512;

/// A GPU.
#[derive(Debug)]
pub struct Cuda {
    gpu: Gpu,
    /// What most of the matrices want activations rounded to.
    rounding: RefCell<Rounding>,
    scratch: RefCell<Scratch>,
    reader: RefCell<Reader>,
}

/// Memory of operations, as large as it ever had to be.
#[derive(Default)]
struct Scratch {
    /// Activations in another rounding or shape than their buffer has them.
    rounded: Option<CudaSlice<u16>>,
    /// Quantised weights in 16 bits.
    widened: Option<CudaSlice<u16>>,
    /// Tiles of attention.
    partial: Option<CudaSlice<f32>>,
    prepared: Option<Prepared>,
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

/// Activations, and what they are rounded to.
#[derive(Debug)]
pub struct Buffer {
    values: CudaSlice<f32>,
    rounded: Option<CudaSlice<u16>>,
    /// What `rounded` holds is this rounding of `values`.
    rounding: Rounding,
}

/// Keys and values.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    keys: CudaSlice<u8>,
    values: CudaSlice<u8>,
}

impl Cuda {
    /// The GPU of this number, as CUDA counts them; what is wanted of its logits is finished on the threads of `host`.
    ///
    /// # Errors
    /// [`KernelError::Device`] without driver, NVRTC or such a GPU, or when the GPU is too old.
    pub fn open(number: usize, host: Cpu) -> Result<Self, KernelError> {
        let (gpu, reader) = (Gpu::open(number)?, RefCell::new(Reader::new(host)));
        Ok(Self { gpu, rounding: RefCell::default(), scratch: RefCell::default(), reader })
    }

    /// Pins the calling thread; see [`Cpu::settle_caller`].
    pub fn settle_caller(&self) {
        self.reader.borrow().host().settle_caller();
    }

    /// Name and compute capability.
    #[must_use]
    pub fn name(&self) -> String {
        self.gpu.name()
    }

    fn at(&self, buffer: &Buffer) -> Address {
        self.gpu.address(&buffer.values)
    }

    /// Where an operation writes what a linear layer will read: the rounded copy and its rounding.
    fn rounded(&self, out: &mut Buffer) -> (Address, u64) {
        out.rounding = *self.rounding.borrow();
        if out.rounding == Rounding::None {
            return (0, 0);
        }
        let memory = match out.rounded.take() {
            Some(memory) => Ok(memory),
            None => self.gpu.allocate(out.values.len()),
        };
        match memory {
            Ok(memory) => (self.gpu.address(out.rounded.insert(memory)), out.rounding.number()),
            Err(error) => {
                self.gpu.keep(error);
                out.rounding = Rounding::None;
                (0, 0)
            }
        }
    }

    /// The buffer is about to be written without a rounded copy.
    fn overwritten(&self, out: &mut Buffer) -> Address {
        out.rounding = Rounding::None;
        self.at(out)
    }

    /// `rows` of `x` as `weight` multiplies them.
    fn activations(
        &self,
        x: &Buffer,
        rows: usize,
        weight: &Matrix,
        memory: &mut Option<CudaSlice<u16>>,
    ) -> Result<Address, KernelError> {
        let (rounding, stored) = (weight.rounding(), weight.stored());
        if rounding == Rounding::None {
            return Ok(self.at(x));
        }
        if let Some(rounded) = x.rounded.as_ref().filter(|_| x.rounding == rounding && stored == weight.inputs) {
            return Ok(self.gpu.address(rounded));
        }
        let rounded = match memory.take() {
            Some(known) if known.len() >= rows * stored => known,
            _ => self.gpu.allocate(rows * stored)?,
        };
        let to = self.gpu.address(memory.insert(rounded));
        let arguments = [self.at(x), to, rounding.number(), weight.inputs as u64, stored as u64];
        self.gpu.launch("round_rows", Size::rows(rows, 256), &arguments);
        Ok(to)
    }

    /// Keeps the failure of `queue`.
    fn keep(&self, queue: impl FnOnce() -> Result<(), KernelError>) {
        if let Err(error) = queue() {
            self.gpu.keep(error);
        }
    }

    fn upload(&self, numbers: impl IntoIterator<Item = usize>) -> Result<Address, KernelError> {
        // Tokens and rows, which 32 bits count.
        let numbers: Vec<u32> = numbers.into_iter().map(|number| number as u32).collect();
        self.gpu.upload(&numbers)
    }

    /// Calls `with` with what is prepared for `places`, and memory for tiles.
    fn prepared(
        &self,
        places: &[Place<'_>],
        shape: CacheShape,
        heads: Heads,
        with: impl FnOnce(&Prepared, &mut Option<CudaSlice<f32>>) -> Result<(), KernelError>,
    ) {
        self.keep(|| {
            let mut scratch = self.scratch.borrow_mut();
            let Scratch { prepared, partial, .. } = &mut *scratch;
            let known = match prepared.take() {
                Some(known) if known.is_for(places, shape, heads) => known,
                _ => Prepared::new(&self.gpu, places, shape, heads)?,
            };
            with(prepared.insert(known), partial)
        });
    }
}

impl Cache {
    fn layer(&self, gpu: &Gpu, layer: usize) -> Layer {
        let Self { shape, keys, values } = self;
        let first = layer * shape.blocks * shape.block_tokens * shape.kv_width * shape.format.bytes();
        let [keys, values] = [keys, values].map(|slice| gpu.address(slice) + first as u64);
        Layer { shape: *shape, keys, values }
    }
}

impl Kernels for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = Cache;

    fn free_bytes(&self) -> Result<Option<u64>, KernelError> {
        self.gpu.free_bytes().map(Some)
    }

    fn cache_format(&self, weights: WeightFormat) -> CacheFormat {
        match weights {
            WeightFormat::F32 => CacheFormat::F32,
            WeightFormat::F16 => CacheFormat::F16,
            WeightFormat::Bf16 | WeightFormat::Q8_0 | WeightFormat::Q4K => CacheFormat::Bf16,
        }
    }

    fn buffer(&self, elements: usize) -> Result<Buffer, KernelError> {
        Ok(Buffer { values: self.gpu.zeros(elements)?, rounded: None, rounding: Rounding::None })
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<Matrix, KernelError> {
        let matrix = Matrix::upload(&self.gpu, weights, format)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<Matrix, KernelError> {
        let matrix = Matrix::from_blocks(&self.gpu, format, shape, blocks)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn matrix_from_floats(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        bytes: Vec<u8>,
    ) -> Result<Matrix, KernelError> {
        let matrix = Matrix::from_floats(&self.gpu, format, shape, &bytes)?;
        self.take_rounding(&matrix);
        Ok(matrix)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        // Slots on the GPU have 32 bits.
        if u32::try_from(shape.blocks * shape.block_tokens).is_err() {
            return Err(KernelError::OutOfMemory { elements });
        }
        // Programs of f32 are also for heads that tensor cores do not take, and have the fold of tiles.
        self.gpu.load(&[Program::Attention(CacheFormat::F32), Program::Attention(shape.format)])?;
        let bytes = elements.saturating_mul(shape.format.bytes());
        Ok(Cache { shape, keys: self.gpu.zeros(bytes)?, values: self.gpu.zeros(bytes)? })
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer) -> Result<(), KernelError> {
        buffer.rounding = Rounding::None;
        if values.is_empty() {
            return Ok(());
        }
        self.gpu.write(values, &buffer.values)
    }

    fn read(&self, buffer: &Buffer, values: &mut [f32]) -> Result<(), KernelError> {
        // Blocks of other batches may come to lie where those of this one do.
        self.scratch.borrow_mut().prepared = None;
        self.gpu.read(&buffer.values, values)
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer) {
        self.keep(|| {
            let (rows, ids) = (ids.len(), self.gpu.upload(ids)?);
            table.embed(&self.gpu, ids, rows, self.overwritten(out));
            Ok(())
        });
    }

    fn select(&self, x: &Buffer, width: usize, rows: &[usize], out: &mut Buffer) {
        self.keep(|| {
            let arguments = [self.at(x), self.upload(rows.iter().copied())?, self.overwritten(out), width as u64];
            self.gpu.launch("select_rows", Size::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn norm(&self, x: &Buffer, rows: usize, norm: NormWeights<'_, Buffer>, out: &mut Buffer) {
        let NormWeights { kind, epsilon, width, weight, bias } = norm;
        let (rounded, rounding) = self.rounded(out);
        let arguments = [
            self.at(x),
            self.at(weight),
            bias.map_or(0, |bias| self.at(bias)),
            self.at(out),
            rounded,
            rounding,
            width as u64,
            u64::from((epsilon as f32).to_bits()),
            u64::from(kind == NormKind::Layer),
        ];
        self.gpu.launch("normalise", Size::rows(rows, NORM_THREADS), &arguments);
    }

    fn linear(&self, x: &Buffer, rows: usize, weight: &Matrix, bias: Option<&Buffer>, out: &mut Buffer) {
        self.multiply((x, rows), weight, bias, (out, false));
    }

    fn linear_add(
        &self,
        x: &Buffer,
        rows: usize,
        weight: &Matrix,
        bias: Option<&Buffer>,
        (sum, _): (&mut Buffer, usize),
        _product: &mut Buffer,
    ) {
        self.multiply((x, rows), weight, bias, (sum, true));
    }

    fn rotate(&self, qkv: &mut Buffer, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Buffer) {
        let arguments = [
            self.overwritten(qkv),
            self.at(angles),
            heads.qkv_width() as u64,
            (heads.query + heads.kv) as u64,
            heads.width as u64,
            rotary.width as u64,
            u64::from(rotary.pairs == Pairs::Neighbours),
        ];
        let pairs = (heads.query + heads.kv) * rotary.width / 2;
        self.gpu.launch("rotate", Size::pairs(rows, pairs), &arguments);
    }

    fn append(&self, qkv: &Buffer, heads: Heads, places: &[Place<'_>], cache: &mut Cache, layer: usize) {
        let to = cache.layer(&self.gpu, layer);
        self.prepared(places, to.shape, heads, |prepared, _| {
            prepared.append(&self.gpu, self.at(qkv), to, None);
            Ok(())
        });
    }

    fn rotate_and_append(
        &self,
        qkv: &mut Buffer,
        heads: Heads,
        (rotary, angles): (RotaryLayout, &Buffer),
        places: &[Place<'_>],
        cache: &mut Cache,
        layer: usize,
    ) {
        let (qkv, angles, to) = (self.overwritten(qkv), self.at(angles), cache.layer(&self.gpu, layer));
        self.prepared(places, to.shape, heads, |prepared, _| {
            prepared.append(&self.gpu, qkv, to, Some((rotary, angles)));
            Ok(())
        });
    }

    fn attend(
        &self,
        qkv: &Buffer,
        heads: Heads,
        window: Option<usize>,
        places: &[Place<'_>],
        (cache, layer): (&Cache, usize),
        out: &mut Buffer,
    ) {
        let from = cache.layer(&self.gpu, layer);
        let (rounded, rounding) = self.rounded(out);
        let out = (self.at(out), rounded, rounding);
        self.prepared(places, from.shape, heads, |prepared, partial| {
            prepared.attend(&self.gpu, (self.at(qkv), window), from, out, partial)
        });
    }

    fn activate(&self, activation: Activation, x: &mut Buffer, elements: usize) {
        let (rounded, rounding) = self.rounded(x);
        let arguments = [number(activation), self.at(x), rounded, rounding, elements as u64];
        self.gpu.launch("activate", Size::elements(elements), &arguments);
    }

    fn activate_gated(&self, activation: Activation, x: &Buffer, rows: usize, inner: usize, out: &mut Buffer) {
        let (rounded, rounding) = self.rounded(out);
        let arguments = [number(activation), self.at(x), self.at(out), rounded, rounding, inner as u64];
        let columns = Size::elements(inner.div_ceil(4));
        let size = Size { blocks: [columns.blocks[0], rows as u32, 1], ..columns };
        self.gpu.launch("activate_gated", size, &arguments);
    }

    fn add(&self, x: &mut Buffer, y: &Buffer, elements: usize) {
        let arguments = [self.overwritten(x), self.at(y), elements as u64];
        self.gpu.launch("add", Size::elements(elements), &arguments);
    }

    fn add_rows(&self, x: &mut Buffer, width: usize, rows: &[usize], columns: Range<usize>, y: &Buffer) {
        self.keep(|| {
            let (first, count) = (columns.start as u64, columns.len() as u64);
            let indices = self.upload(rows.iter().copied())?;
            let arguments = [self.overwritten(x), indices, self.at(y), width as u64, first, count];
            self.gpu.launch("add_rows", Size::rows(rows.len(), 256), &arguments);
            Ok(())
        });
    }

    fn read_rows(
        &self,
        logits: &Buffer,
        vocabulary: usize,
        tasks: &mut [RowTask<'_>],
    ) -> Result<Duration, KernelError> {
        // As in `read`.
        self.scratch.borrow_mut().prepared = None;
        self.reader.borrow_mut().read(&self.gpu, self.at(logits), vocabulary, tasks)
    }

    fn read_kept(&self, row: &KeptRow, task: &mut RowTask<'_>) -> Result<(), KernelError> {
        let Some(Some(row)) = row.row_on_gpu() else {
            return Err(KernelError::Device("the row was kept elsewhere".to_owned()));
        };
        let tasks = std::slice::from_mut(task);
        self.reader.borrow_mut().read(&self.gpu, self.gpu.address(row), row.len(), tasks).map(drop)
    }
}

impl Cuda {
    fn multiply(
        &self,
        (x, rows): (&Buffer, usize),
        weight: &Matrix,
        bias: Option<&Buffer>,
        (out, adds): (&mut Buffer, bool),
    ) {
        if rows == 0 {
            return;
        }
        self.keep(|| {
            let mut scratch = self.scratch.borrow_mut();
            let Scratch { rounded, widened, .. } = &mut *scratch;
            let product = Product {
                x: self.activations(x, rows, weight, rounded)?,
                rows,
                bias: bias.map_or(0, |bias| self.at(bias)),
                out: self.overwritten(out),
                adds,
            };
            weight.multiply(&self.gpu, &product, widened);
            Ok(())
        });
    }

    fn take_rounding(&self, matrix: &Matrix) {
        let rounding = matrix.rounding();
        if rounding != Rounding::None {
            *self.rounding.borrow_mut() = rounding;
        }
    }
}

/// As kernels are told.
fn number(activation: Activation) -> u64 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluErf => 1,
        Activation::GeluTanh => 2,
    }
}
