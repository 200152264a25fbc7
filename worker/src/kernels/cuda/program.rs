//! The GPU's programs, compiled for the GPU at hand when a worker starts.
//!
//! NVRTC needs no GPU to compile, so a machine without one can check the programs.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::Arc;

use cudarc::nvrtc::{result as nvrtc, sys};
use parking_lot::Mutex;

use crate::kernels::{CacheFormat, WeightFormat};

/// Beginning of every program.
const NUMBERS: &str = concat!(include_str!("instructions.cuh"), include_str!("numbers.cuh"));
const ELEMENTWISE: &str = include_str!("elementwise.cu");
const ATTENTION: &str = include_str!("attention.cu");
const DRAW: &str = include_str!("draw.cu");
const LINEAR: &str = include_str!("linear.cu");

/// A translation unit for NVRTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GpuProgram {
    /// Elementwise kernels and normalisations.
    Layers,
    /// Attention over a cache of one format.
    Attention(CacheFormat),
    /// Draws and views of logits.
    Rows,
    /// Products with weights of one format.
    Linear(WeightFormat),
}

/// Every program.
pub const PROGRAMS: [GpuProgram; 10] = [
    GpuProgram::Layers,
    GpuProgram::Attention(CacheFormat::F32),
    GpuProgram::Attention(CacheFormat::F16),
    GpuProgram::Attention(CacheFormat::Bf16),
    GpuProgram::Rows,
    GpuProgram::Linear(WeightFormat::F32),
    GpuProgram::Linear(WeightFormat::Bf16),
    GpuProgram::Linear(WeightFormat::F16),
    GpuProgram::Linear(WeightFormat::Q8_0),
    GpuProgram::Linear(WeightFormat::Q4K),
];

impl GpuProgram {
    fn source(self) -> String {
        match self {
            Self::Layers => [NUMBERS, ELEMENTWISE].concat(),
            Self::Attention(format) => {
                let format = match format {
                    CacheFormat::F32 => "F32",
                    CacheFormat::F16 => "F16",
                    CacheFormat::Bf16 => "BF16",
                };
                format!("#define FORMAT_{format}\n{NUMBERS}{ATTENTION}")
            }
            Self::Rows => DRAW.to_owned(),
            Self::Linear(format) => {
                let format = match format {
                    WeightFormat::F32 => "F32",
                    WeightFormat::Bf16 => "BF16",
                    WeightFormat::F16 => "F16",
                    WeightFormat::Q8_0 => "Q8_0",
                    WeightFormat::Q4K => "Q4_K",
                };
                format!("#define FORMAT_{format}\n{NUMBERS}{LINEAR}")
            }
        }
    }
}

/// Machine code by program and compute capability.
type CompiledPrograms = HashMap<(GpuProgram, (i32, i32)), Arc<[u8]>>;

/// Compiles `program` for a compute capability, 9.0 being (9, 0), once per process.
///
/// # Errors
/// [`CompileError`].
pub fn compiled(program: GpuProgram, capability: (i32, i32)) -> Result<Arc<[u8]>, CompileError> {
    static KNOWN: Mutex<Option<CompiledPrograms>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    let known = known.get_or_insert_default();
    if let Some(code) = known.get(&(program, capability)) {
        return Ok(Arc::clone(code));
    }
    let code: Arc<[u8]> = compile(program, capability)?.into();
    known.insert((program, capability), Arc::clone(&code));
    Ok(code)
}

/// The CUDA version of NVRTC, 13.0 being (13, 0).
///
/// # Errors
/// [`CompileError`].
#[expect(unsafe_code, reason = "NVRTC is a C library")]
pub(super) fn version() -> Result<(i32, i32), CompileError> {
    // SAFETY: it only looks for a file.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both places are there to be written.
    let asked = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
    asked.map(|()| (major, minor)).map_err(|error| CompileError::Rejected { problem: error.to_string() })
}

#[expect(unsafe_code, reason = "NVRTC is a C library")]
fn compile(program: GpuProgram, (major, minor): (i32, i32)) -> Result<Vec<u8>, CompileError> {
    // SAFETY: it only looks for a file.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::NoCompiler);
    }
    let rejected = |error: nvrtc::NvrtcError| CompileError::Rejected { problem: error.to_string() };
    let source =
        CString::new(program.source()).map_err(|error| CompileError::Rejected { problem: error.to_string() })?;
    let compiling = nvrtc::create_program(&source, None).map_err(rejected)?;
    let options = [
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".to_owned(),
        // Lambdas run on the GPU, too.
        "--device-as-default-execution-space".to_owned(),
    ];
    // SAFETY: the program was just created, its source lives to the end of this function, and the buffer has the size
    // that NVRTC says. It is destroyed once, whatever came before.
    unsafe {
        let compiled = nvrtc::compile_program(compiling, &options).map_err(|error| {
            let log = nvrtc::get_program_log(compiling).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
            let log = CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned());
            CompileError::Rejected { problem: format!("{error}: {}", log.unwrap_or_default().trim()) }
        });
        let code = compiled.and_then(|()| {
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(compiling, &raw mut bytes).result().map_err(rejected)?;
            let mut code = vec![0_u8; bytes];
            sys::nvrtcGetCUBIN(compiling, code.as_mut_ptr().cast()).result().map_err(rejected)?;
            Ok(code)
        });
        let destroyed = nvrtc::destroy_program(compiling).map_err(rejected);
        code.and_then(|code| destroyed.map(|()| code))
    }
}

/// Why a program could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages and field names say it")]
pub enum CompileError {
    #[error(
        "libnvrtc is not found; install CUDA's NVRTC 12 or 13 (Debian: cuda-nvrtc-13-0) or name its folder in LD_LIBRARY_PATH"
    )]
    NoCompiler,
    #[error("NVRTC: {problem}")]
    Rejected { problem: String },
}
