//! Matrices of weights on the GPU, and products with them.

use candle_core::Tensor;
use cudarc::driver::CudaSlice;

use super::driver::DeviceAddress;
use super::gpu::{GpuDevice, LaunchSize};
use super::program::GpuProgram;
use crate::kernels::{KernelError, WeightFormat, blocks};

/// A matrix is padded to multiples of these.
const OUTPUTS: usize = 16;
const INPUTS: usize = 128;

/// Inputs of a tile.
const TILE_INPUTS: usize = 32;

/// Weights `[outputs, inputs]`.
#[derive(Debug)]
pub struct GpuMatrix {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) weights: GpuWeights,
}

#[derive(Debug)]
pub(super) enum GpuWeights {
    /// Row by row.
    F32(CudaSlice<f32>),
    /// As tensor cores take them; see `linear.cu`.
    Tiles { format: WeightFormat, tiles: CudaSlice<u8>, scales: CudaSlice<u8>, stored: usize },
}

/// Type that activations are rounded to before a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ActivationRounding {
    #[default]
    None,
    Bf16,
    F16,
}

impl ActivationRounding {
    /// Its number in the CUDA source.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Bf16 => 1,
            Self::F16 => 2,
        }
    }
}

/// Function names of one format.
struct FormatFunctions {
    embed: &'static str,
    /// In the order of [`FEW`].
    few: [&'static str; FEW.len()],
    /// In the order of [`MANY`].
    many: [&'static str; MANY.len()],
}

/// A kernel for few rows.
#[derive(Clone, Copy, Debug)]
struct FewRowsKernel {
    rows: usize,
    warps: u32,
    stages: u32,
}

/// Sorted by rows, then by warps.
const FEW: [FewRowsKernel; 8] = [
    FewRowsKernel { rows: 8, warps: 1, stages: 8 },
    FewRowsKernel { rows: 8, warps: 4, stages: 5 },
    FewRowsKernel { rows: 16, warps: 2, stages: 6 },
    FewRowsKernel { rows: 16, warps: 4, stages: 4 },
    FewRowsKernel { rows: 32, warps: 2, stages: 6 },
    FewRowsKernel { rows: 32, warps: 4, stages: 4 },
    FewRowsKernel { rows: 64, warps: 2, stages: 4 },
    FewRowsKernel { rows: 64, warps: 4, stages: 3 },
];

/// A kernel for many rows: outputs and rows of a block of 128 threads.
#[derive(Clone, Copy, Debug)]
struct ManyRowsKernel {
    outputs: usize,
    rows: usize,
    stages: u32,
}

/// Larger tiles read weights and activations fewer times.
const MANY: [ManyRowsKernel; 3] = [
    ManyRowsKernel { outputs: 64, rows: 64, stages: 5 },
    ManyRowsKernel { outputs: 128, rows: 64, stages: 4 },
    ManyRowsKernel { outputs: 128, rows: 128, stages: 4 },
];

macro_rules! functions {
    ($format:literal, $number:literal) => {
        FormatFunctions {
            embed: concat!("embed_", $format),
            few: [
                concat!("few_8_1_", $format),
                concat!("few_8_4_", $format),
                concat!("few_16_2_", $format),
                concat!("few_16_4_", $format),
                concat!("few_32_2_", $format),
                concat!("few_32_4_", $format),
                concat!("few_64_2_", $format),
                concat!("few_64_4_", $format),
            ],
            many: [
                concat!("many_64_64_", $number),
                concat!("many_128_64_", $number),
                concat!("many_128_128_", $number),
            ],
        }
    };
}

static OF_BF16: FormatFunctions = functions!("bf16", "bf16");
static OF_F16: FormatFunctions = functions!("f16", "f16");
static OF_Q8_0: FormatFunctions = functions!("q8_0", "bf16");
static OF_Q4_K: FormatFunctions = functions!("q4_k", "bf16");

/// Arguments of a matrix product.
pub(super) struct MatrixProduct {
    /// `[rows][stored]`, rounded; `[rows][inputs]` in f32 for weights in f32.
    pub(super) x: DeviceAddress,
    pub(super) rows: usize,
    pub(super) bias: DeviceAddress,
    pub(super) out: DeviceAddress,
    /// Whether to add to `out`.
    pub(super) adds: bool,
}

impl GpuMatrix {
    pub(super) fn upload(gpu: &GpuDevice, weights: &Tensor, format: WeightFormat) -> Result<Self, KernelError> {
        let (outputs, inputs) = weights.dims2().map_err(host)?;
        let bytes = blocks::encode(weights, format)?;
        match format.dtype() {
            Ok(_) => Self::from_floats(gpu, format, [outputs, inputs], &bytes),
            Err(_) => Self::from_blocks(gpu, format, [outputs, inputs], &bytes),
        }
    }

    pub(super) fn from_floats(
        gpu: &GpuDevice,
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        gpu.load(&[GpuProgram::Linear(format)])?;
        let size = format.dtype()?.size_in_bytes();
        if outputs.checked_mul(inputs).and_then(|elements| elements.checked_mul(size)) != Some(bytes.len()) {
            let found = bytes.len();
            return Err(KernelError::Device(format!("{found} bytes are no {format:?} matrix [{outputs}, {inputs}]")));
        }
        let weights = match format {
            WeightFormat::F32 => {
                let (values, _) = bytes.as_chunks();
                let values: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                GpuWeights::F32(gpu.copy(&values)?)
            }
            _ => packed(gpu, format, [outputs, inputs], bytes)?,
        };
        Ok(Self { outputs, inputs, weights })
    }

    pub(super) fn from_blocks(
        gpu: &GpuDevice,
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        stored: &[u8],
    ) -> Result<Self, KernelError> {
        blocks::check(format, [outputs, inputs], stored)?;
        gpu.load(&[GpuProgram::Linear(format)])?;
        Ok(Self { outputs, inputs, weights: packed(gpu, format, [outputs, inputs], stored)? })
    }

    /// Type that activations are rounded to.
    pub(super) fn rounding(&self) -> ActivationRounding {
        match &self.weights {
            GpuWeights::F32(_) => ActivationRounding::None,
            GpuWeights::Tiles { format: WeightFormat::F16, .. } => ActivationRounding::F16,
            GpuWeights::Tiles { .. } => ActivationRounding::Bf16,
        }
    }

    /// Inputs of a rounded row.
    pub(super) fn stored(&self) -> usize {
        match &self.weights {
            GpuWeights::F32(_) => self.inputs,
            GpuWeights::Tiles { stored, .. } => *stored,
        }
    }

    /// `out[i] = self[ids[i]]`.
    pub(super) fn embed(&self, gpu: &GpuDevice, ids: DeviceAddress, rows: usize, out: DeviceAddress) {
        let (size, inputs) = (LaunchSize::rows(rows, 256), self.inputs as u64);
        match &self.weights {
            GpuWeights::F32(table) => gpu.launch("embed_f32", size, &[gpu.address(table), ids, out, inputs]),
            GpuWeights::Tiles { format, tiles, scales, stored } => {
                let arguments = [gpu.address(tiles), gpu.address(scales), ids, out, inputs, *stored as u64];
                gpu.launch(functions(*format).embed, size, &arguments);
            }
        }
    }

    /// Queues `product`. `widened` is memory for the weights in 16 bits, which many rows need.
    pub(super) fn multiply(&self, gpu: &GpuDevice, product: &MatrixProduct, widened: &mut Option<CudaSlice<u16>>) {
        match &self.weights {
            GpuWeights::F32(weights) => {
                const WARPS: usize = 8;
                const ROWS: usize = 4;
                let blocks = [self.outputs.div_ceil(WARPS) as u32, product.rows.div_ceil(ROWS) as u32, 1];
                let size = LaunchSize { blocks, threads: 32 * WARPS as u32, shared_bytes: 0 };
                let &MatrixProduct { x, rows, bias, out, adds } = product;
                let (outputs, inputs) = (self.outputs as u64, self.inputs as u64);
                let arguments = [gpu.address(weights), x, bias, out, rows as u64, outputs, inputs, u64::from(adds)];
                gpu.launch("multiply_f32", size, &arguments);
            }
            GpuWeights::Tiles { format, tiles, scales, stored } => {
                let (tiles, scales) = (gpu.address(tiles), gpu.address(scales));
                match self.few(gpu, *format, product.rows) {
                    Some((name, size)) => {
                        gpu.launch(name, size, &product.arguments(tiles, scales, self.outputs, *stored));
                    }
                    None => match self.widen(gpu, widened) {
                        Ok(tiles) => self.multiply_many(gpu, *format, tiles, product, *stored),
                        Err(error) => gpu.keep(error),
                    },
                }
            }
        }
    }

    /// The kernel for few rows that fits `rows`, and its launch size.
    fn few(&self, gpu: &GpuDevice, format: WeightFormat, rows: usize) -> Option<(&'static str, LaunchSize)> {
        let tiles = self.outputs.div_ceil(OUTPUTS) as u32;
        let sized = |few: &FewRowsKernel| {
            let (stage, scale) = stage_bytes(format);
            let shared_bytes = few.stages * (few.warps * (stage + scale) + few.rows as u32 * 256);
            LaunchSize { blocks: [tiles.div_ceil(few.warps), 1, 1], threads: few.warps * 32, shared_bytes }
        };
        let takes = |few: &FewRowsKernel| few.rows >= rows && sized(few).shared_bytes <= gpu.shared_bytes;
        let first = FEW.iter().position(takes)?;
        // Larger blocks read activations fewer times, as long as there are blocks for all processors.
        let larger = |few: &FewRowsKernel| few.rows == FEW[first].rows && sized(few).blocks[0] >= 2 * gpu.processors;
        let index = FEW.iter().rposition(|few| takes(few) && larger(few)).unwrap_or(first);
        Some((functions(format).few[index], sized(&FEW[index])))
    }

    fn multiply_many(
        &self,
        gpu: &GpuDevice,
        format: WeightFormat,
        tiles: DeviceAddress,
        product: &MatrixProduct,
        stored: usize,
    ) {
        let sized = |many: &ManyRowsKernel| LaunchSize {
            blocks: [product.rows.div_ceil(many.rows) as u32, self.outputs.div_ceil(many.outputs) as u32, 1],
            threads: 128,
            shared_bytes: many.stages * (many.outputs + many.rows) as u32 * 64,
        };
        // The largest that leaves almost two blocks for every processor.
        let index = MANY.iter().rposition(|many| {
            let [across, up, _] = sized(many).blocks;
            2 * across * up >= 3 * gpu.processors + gpu.processors / 2
        });
        let index = index.unwrap_or(0);
        let arguments = product.arguments(tiles, 0, self.outputs, stored);
        gpu.launch(functions(format).many[index], sized(&MANY[index]), &arguments);
    }

    /// The tiles in 16 bits.
    fn widen(&self, gpu: &GpuDevice, memory: &mut Option<CudaSlice<u16>>) -> Result<DeviceAddress, KernelError> {
        let GpuWeights::Tiles { format, tiles, scales, stored } = &self.weights else { return Ok(0) };
        let name = match format {
            WeightFormat::Q8_0 => "widen_q8_0",
            WeightFormat::Q4K => "widen_q4_k",
            _ => return Ok(gpu.address(tiles)),
        };
        let elements = self.outputs.next_multiple_of(OUTPUTS) * stored;
        let widened = match memory.take() {
            Some(known) if known.len() >= elements => known,
            _ => gpu.allocate(elements)?,
        };
        let widened = gpu.address(memory.insert(widened));
        let size = LaunchSize { blocks: [8 * gpu.processors, 1, 1], threads: 256, shared_bytes: 0 };
        let count = elements / (OUTPUTS * TILE_INPUTS);
        gpu.launch(name, size, &[gpu.address(tiles), gpu.address(scales), widened, count as u64]);
        Ok(widened)
    }
}

impl MatrixProduct {
    fn arguments(&self, tiles: DeviceAddress, scales: DeviceAddress, outputs: usize, stored: usize) -> [u64; 9] {
        let &Self { x, rows, bias, out, adds } = self;
        [tiles, scales, x, bias, out, rows as u64, outputs as u64, stored as u64, u64::from(adds)]
    }
}

fn functions(format: WeightFormat) -> &'static FormatFunctions {
    match format {
        // Never asked for.
        WeightFormat::F32 | WeightFormat::Bf16 => &OF_BF16,
        WeightFormat::F16 => &OF_F16,
        WeightFormat::Q8_0 => &OF_Q8_0,
        WeightFormat::Q4K => &OF_Q4_K,
    }
}

/// Bytes of 128 inputs of 16 outputs, and of their scales.
fn stage_bytes(format: WeightFormat) -> (u32, u32) {
    match format {
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => (4096, 0),
        WeightFormat::Q8_0 => (2048, 128),
        WeightFormat::Q4K => (1024, 256),
    }
}

/// Uploads weights in their stored format and packs them on the GPU.
fn packed(
    gpu: &GpuDevice,
    format: WeightFormat,
    [outputs, inputs]: [usize; 2],
    weights: &[u8],
) -> Result<GpuWeights, KernelError> {
    let stored = inputs.next_multiple_of(INPUTS);
    let elements = outputs.next_multiple_of(OUTPUTS) * stored;
    let (stage, scale) = stage_bytes(format);
    let stages = elements / (OUTPUTS * INPUTS);
    let tiles = gpu.allocate(stages * stage as usize)?;
    let scales = gpu.allocate(stages * scale as usize)?;
    let from = gpu.copy(weights)?;
    let shape = [outputs as u64, inputs as u64, stored as u64];
    let (from, to, scales_to) = (gpu.address(&from), gpu.address(&tiles), gpu.address(&scales));
    match format {
        WeightFormat::Q8_0 => {
            gpu.launch(
                "pack_q8_0",
                LaunchSize::elements(elements),
                &[&[from, to, scales_to], shape.as_slice()].concat(),
            );
        }
        WeightFormat::Q4K => {
            gpu.launch(
                "pack_q4_k",
                LaunchSize::elements(elements / 2),
                &[&[from, to, scales_to], shape.as_slice()].concat(),
            );
        }
        WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => {
            gpu.launch("pack_16_bits", LaunchSize::elements(elements), &[&[from, to], shape.as_slice()].concat());
        }
    }
    Ok(GpuWeights::Tiles { format, tiles, scales, stored })
}

fn host(error: candle_core::Error) -> KernelError {
    KernelError::Device(error.to_string())
}
