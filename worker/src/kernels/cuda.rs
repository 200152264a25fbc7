//! The kernels on an NVIDIA GPU.
//!
//! The driver and NVRTC are loaded when a worker starts for a GPU; building one needs no CUDA. The programs in
//! `cuda/*.cu` are compiled then.
//!
//! Activations are f32. Weights in f32 multiply them unchanged. Weights in 16 bits multiply activations that are
//! rounded to the same type; quantised weights and their activations are rounded to bfloat16. Sums are f32. Attention
//! over a cache of 16 bits rounds queries and weights to the cache's type.
//!
//! Operations are queued; the first failure is kept until [`Kernels::read`](super::Kernels::read) asks.

use std::cell::RefCell;

use cudarc::driver::CudaSlice;

use self::attention::{CacheLayer, PreparedAttention};
use self::driver::DeviceAddress;
use self::gpu::{GpuDevice, LaunchSize};
pub use self::matrix::GpuMatrix;
use self::matrix::{ActivationRounding, MatrixProduct};
use self::reader::LogitsReader;
use super::cpu::CpuKernels;
use super::{AttentionHeads, CacheShape, KernelError, TokenPlace};

mod attention;
mod driver;
mod gpu;
mod kernels;
mod logits_answers;
mod logits_questions;
mod matrix;
mod profile;
pub mod program;
mod reader;
mod staging;
mod timing;

/// A GPU.
#[derive(Debug)]
pub struct CudaKernels {
    gpu: GpuDevice,
    /// Rounding that the matrices need.
    rounding: RefCell<ActivationRounding>,
    scratch: RefCell<GpuScratch>,
    reader: RefCell<LogitsReader>,
}

/// Memory of operations, grown to the largest so far.
#[derive(Default)]
struct GpuScratch {
    /// Activations in a rounding or shape that their buffer lacks.
    rounded: Option<CudaSlice<u16>>,
    /// Quantised weights in 16 bits.
    widened: Option<CudaSlice<u16>>,
    /// Stored tiles of attention.
    partial: Option<CudaSlice<f32>>,
    prepared: Option<PreparedAttention>,
}

impl std::fmt::Debug for GpuScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scratch")
    }
}

/// Activations, with a rounded copy.
#[derive(Debug)]
pub struct GpuBuffer {
    values: CudaSlice<f32>,
    rounded: Option<CudaSlice<u16>>,
    /// The rounding in `rounded`.
    rounding: ActivationRounding,
}

/// Keys and values.
#[derive(Debug)]
pub struct GpuCache {
    shape: CacheShape,
    keys: CudaSlice<u8>,
    values: CudaSlice<u8>,
}

impl CudaKernels {
    /// Opens a GPU by its CUDA number; views of its logits are finished on the threads of `host`.
    ///
    /// # Errors
    /// [`KernelError::Device`] without driver, NVRTC or such a GPU, or when the GPU is too old.
    pub fn open(number: usize, host: CpuKernels) -> Result<Self, KernelError> {
        let (gpu, reader) = (GpuDevice::open(number)?, RefCell::new(LogitsReader::new(host)));
        Ok(Self { gpu, rounding: RefCell::default(), scratch: RefCell::default(), reader })
    }

    /// Pins the calling thread; see [`CpuKernels::pin_caller`].
    pub fn pin_caller(&self) {
        self.reader.borrow().host().pin_caller();
    }

    /// Name and compute capability.
    #[must_use]
    pub fn name(&self) -> String {
        self.gpu.name()
    }

    fn at(&self, buffer: &GpuBuffer) -> DeviceAddress {
        self.gpu.address(&buffer.values)
    }

    /// Where an operation writes the rounded copy for the next linear layer, and the rounding.
    fn rounded(&self, out: &mut GpuBuffer) -> (DeviceAddress, u64) {
        out.rounding = *self.rounding.borrow();
        if out.rounding == ActivationRounding::None {
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
                out.rounding = ActivationRounding::None;
                (0, 0)
            }
        }
    }

    /// Address of a buffer that is about to be written without a rounded copy.
    fn overwritten(&self, out: &mut GpuBuffer) -> DeviceAddress {
        out.rounding = ActivationRounding::None;
        self.at(out)
    }

    /// `rows` of `x` as `weight` multiplies them.
    fn activations(
        &self,
        x: &GpuBuffer,
        rows: usize,
        weight: &GpuMatrix,
        memory: &mut Option<CudaSlice<u16>>,
    ) -> Result<DeviceAddress, KernelError> {
        let (rounding, stored) = (weight.rounding(), weight.stored());
        if rounding == ActivationRounding::None {
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
        self.gpu.launch("round_rows", LaunchSize::rows(rows, 256), &arguments);
        Ok(to)
    }

    /// Keeps a failure of `queue` until the next read.
    fn keep(&self, queue: impl FnOnce() -> Result<(), KernelError>) {
        if let Err(error) = queue() {
            self.gpu.keep(error);
        }
    }

    fn upload(&self, numbers: impl IntoIterator<Item = usize>) -> Result<DeviceAddress, KernelError> {
        // Token ids and row numbers fit 32 bits.
        let numbers: Vec<u32> = numbers.into_iter().map(|number| number as u32).collect();
        self.gpu.upload(&numbers)
    }

    /// Calls `with` with the prepared `places` and memory for tiles.
    fn prepared(
        &self,
        places: &[TokenPlace<'_>],
        shape: CacheShape,
        heads: AttentionHeads,
        with: impl FnOnce(&PreparedAttention, &mut Option<CudaSlice<f32>>) -> Result<(), KernelError>,
    ) {
        self.keep(|| {
            let mut scratch = self.scratch.borrow_mut();
            let GpuScratch { prepared, partial, .. } = &mut *scratch;
            let known = match prepared.take() {
                Some(known) if known.is_for(places, shape, heads) => known,
                _ => PreparedAttention::new(&self.gpu, places, shape, heads)?,
            };
            with(prepared.insert(known), partial)
        });
    }
}

impl GpuCache {
    fn layer(&self, gpu: &GpuDevice, layer: usize) -> CacheLayer {
        let Self { shape, keys, values } = self;
        let first = layer * shape.blocks * shape.block_tokens * shape.kv_width * shape.format.bytes();
        let [keys, values] = [keys, values].map(|slice| gpu.address(slice) + first as u64);
        CacheLayer { shape: *shape, keys, values }
    }
}

impl CudaKernels {
    fn multiply(
        &self,
        (x, rows): (&GpuBuffer, usize),
        weight: &GpuMatrix,
        bias: Option<&GpuBuffer>,
        (out, adds): (&mut GpuBuffer, bool),
    ) {
        if rows == 0 {
            return;
        }
        self.keep(|| {
            let mut scratch = self.scratch.borrow_mut();
            let GpuScratch { rounded, widened, .. } = &mut *scratch;
            let product = MatrixProduct {
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

    fn take_rounding(&self, matrix: &GpuMatrix) {
        let rounding = matrix.rounding();
        if rounding != ActivationRounding::None {
            *self.rounding.borrow_mut() = rounding;
        }
    }
}
