//! Products with weights of every format: agreement, rounding, and the same bits for a row alone or in a batch.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use cosec_worker::cpu_set::CpuSet;
use cosec_worker::kernels::cpu::CpuKernels;
use cosec_worker::kernels::reference::ReferenceKernels;
use cosec_worker::kernels::{Kernels, WeightFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Compute, FORMATS, check_cpu, download, is_stand_in, matrix, random, upload, with_gpu, with_seeds};

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
/// one part in 65,534 of the largest in its block, or to one in 254.
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

/// Relative to the usual L2 norm of such products. Activations are exact in the weights' type; quantised
/// weights are rounded to bfloat16.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn linear_is_close_on_a_gpu() {
    with_gpu(|cuda| {
        with_seeds(|rng| {
            for (format, dtype, bound) in [
                (WeightFormat::F32, DType::F32, 1e-5),
                (WeightFormat::Bf16, DType::BF16, 1e-5),
                (WeightFormat::F16, DType::F16, 1e-5),
                (WeightFormat::Q8_0, DType::BF16, 4e-3),
                (WeightFormat::Q4K, DType::BF16, 6e-3),
            ] {
                let linear = Linear::random(rng, format);
                let x = matrix(&linear.x, linear.rows).to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
                let linear = Linear { x: x.flatten_all().unwrap().to_vec1().unwrap(), ..linear };
                let (found, expected) = (linear.with(cuda), linear.with(&ReferenceKernels));
                assert_eq!(found.len(), expected.len());
                let error = distance(&found, &expected);
                // A product of numbers in [-1, 1] has a mean square of 1/9.
                let usual = (found.len() * linear.x.len() / linear.rows) as f32 / 9.0;
                assert!(error <= bound * usual.sqrt(), "{format:?}: {error} of {usual}");
            }
        });
    });
}

/// Every kernel for products: few and many rows, odd shapes and those of real layers.
#[test]
#[ignore = "needs a GPU, or the stand-in that tests/run gives it"]
fn linear_rows_do_not_depend_on_their_company_on_a_gpu() {
    with_gpu(|cuda| {
        let rng = &mut StdRng::seed_from_u64(rand::random());
        let (most, shapes) = if is_stand_in(cuda) {
            (300, [(256, 96), (100, 50), (1152, 300), (640, 1040)])
        } else {
            (600, [(256, 96), (100, 50), (2048, 1536), (5504, 2048)])
        };
        for format in FORMATS {
            for (inputs, outputs) in shapes {
                if is_stand_in(cuda) && format == WeightFormat::F32 && outputs > 100 {
                    continue;
                }
                let Linear { x, weight, bias, .. } = Linear::shaped(rng, format, (most, inputs, outputs));
                let (x, weight) = (upload(cuda, &x), cuda.matrix(&weight, format).unwrap());
                let bias = bias.as_ref().map(|bias| upload(cuda, bias));
                let product = |rows: usize| {
                    let mut out = cuda.buffer(rows * outputs).unwrap();
                    cuda.linear(&x, rows, &weight, bias.as_ref(), &mut out);
                    download(cuda, &out, rows * outputs)
                };
                let together = product(most);
                for rows in [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 300] {
                    assert!(product(rows) == together[..rows * outputs], "{format:?} {rows} rows of {inputs}");
                }
            }
        }
    });
}

/// Against the product with the quantised weights: for eight bits the rounding of activations is negligible.
#[test]
fn rounding_activations_to_16_bits_costs_little() {
    with_seeds(|rng| {
        let linear = Linear { bias: None, ..Linear::random(rng, WeightFormat::Q8_0) };
        let (found, expected) = (linear.with(&CpuKernels::default()), linear.with(&ReferenceKernels));
        let length = distance(&expected, &vec![0.0; expected.len()]);
        assert!(distance(&found, &expected) <= 5e-5 * length.max(1.0));
    });
}

/// llama.cpp rounds activations for Q4_K to one part in 254 of the largest of 256; here it is the largest of 32.
#[test]
fn rounding_activations_to_8_bits_costs_less_than_in_llama_cpp() {
    with_seeds(|rng| {
        let (rows, inputs, outputs) = (3, 768, 90);
        let mut linear = Linear { bias: None, ..Linear::shaped(rng, WeightFormat::Q4K, (rows, inputs, outputs)) };
        for part in linear.x.chunks_mut(32) {
            let size = rng.random_range(0.1..1.0);
            part.iter_mut().for_each(|x| *x *= size);
        }
        let (found, expected) = (linear.with(&CpuKernels::default()), linear.with(&ReferenceKernels));
        for part in linear.x.chunks_mut(256) {
            let scale = part.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())) / 127.0;
            part.iter_mut().for_each(|x| *x = (*x / scale).round() * scale);
        }
        let (ours, theirs) = (distance(&found, &expected), distance(&linear.with(&ReferenceKernels), &expected));
        assert!(ours <= theirs, "{ours}, not at most {theirs}");
    });
}

#[test]
fn linear_rows_do_not_depend_on_their_company() {
    with_seeds(|rng| {
        for format in FORMATS {
            let many = Linear::random(rng, format);
            let inputs = many.x.len() / many.rows;
            let together = many.with(&CpuKernels::default());
            let outputs = together.len() / many.rows;
            for (row, x) in many.x.chunks_exact(inputs).enumerate() {
                let (weight, bias) = (many.weight.clone(), many.bias.clone());
                let one = Linear { x: x.to_vec(), rows: 1, weight, format, bias };
                assert_eq!(one.with(&CpuKernels::default()), &together[row * outputs..][..outputs], "row {row}");
            }
        }
    });
}

/// Large enough for several threads.
#[test]
fn linear_does_not_depend_on_threads() {
    let mut rng = StdRng::seed_from_u64(rand::random());
    let (inputs, outputs, rows) = (515, 1031, 5);
    for format in FORMATS {
        let weight = matrix(&random(&mut rng, inputs * outputs), outputs);
        let linear = Linear { x: random(&mut rng, rows * inputs), rows, weight, format, bias: None };
        let alone = linear.with(&CpuKernels::new(1, None).unwrap());
        assert_eq!(alone, linear.with(&CpuKernels::new(3, None).unwrap()));
        // Not every system can pin threads.
        let pinned = CpuKernels::new(3, CpuSet::available().ok().as_ref()).unwrap();
        assert_eq!(alone, linear.with(&pinned));
        check_cpu(tolerance(format), &linear);
    }
}

#[test]
fn blocks_of_a_file_are_the_weights_they_stand_for() {
    let mut rng = StdRng::seed_from_u64(rand::random());
    let (outputs, inputs) = (37, 512);
    let (weight, x) = (matrix(&random(&mut rng, outputs * inputs), outputs), random(&mut rng, inputs));
    for (format, dtype) in [(WeightFormat::Q8_0, GgmlDType::Q8_0), (WeightFormat::Q4K, GgmlDType::Q4K)] {
        let blocks = QTensor::quantize(&weight, dtype).unwrap().data().unwrap().into_owned();
        for kernels in [CpuKernels::default(), CpuKernels::baseline()] {
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

/// All 16-bit patterns, including subnormals, infinities and NaN.
#[test]
fn half_precision_widens_exactly() {
    let bits: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [DType::F16, DType::BF16] {
        let table = Tensor::from_raw_buffer(&bits, dtype, &[1 << 13, 8], &Device::Cpu).unwrap();
        let expected: Vec<f32> = table.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for cpu in [CpuKernels::default(), CpuKernels::baseline()] {
            // A product with a row of the identity selects one column.
            for column in 0..8 {
                let mut x = vec![0.0; 8];
                x[column] = 1.0;
                let mut out = cpu.buffer(1 << 13).unwrap();
                cpu.linear(&x, 1, &cpu.matrix(&table, WeightFormat::of(dtype)).unwrap(), None, &mut out);
                for (row, found) in out.iter().enumerate() {
                    let values = &expected[8 * row..][..8];
                    // Infinity times zero is NaN.
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
