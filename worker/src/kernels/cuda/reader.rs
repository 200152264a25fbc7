//! Reads rows of logits on a GPU: only what is wanted of them comes to the host.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use cudarc::driver::CudaSlice;

use super::driver::Address;
use super::gpu::{Gpu, Size};
use super::logits_questions::{Desk, Questions};
use crate::kernels::KernelError;
use crate::kernels::cpu::Cpu;
use crate::rows::{GpuRow, KeptRow, Lent, RowTask, Spare};

/// Memory of questions and answers, as large as it ever had to be, and the threads that finish them.
#[derive(Debug)]
pub(super) struct Reader {
    host: Cpu,
    questions: Questions,
    scratch: Option<CudaSlice<u32>>,
    answers: Option<CudaSlice<u32>>,
    /// The answers here, and behind them the rows that the host has to read.
    words: Vec<u32>,
    /// Where the row of each task lies there.
    rows: Vec<Option<usize>>,
    spare: Spare<GpuRow>,
    kept: Vec<Option<Lent<GpuRow>>>,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
    static ROW: RefCell<Vec<f32>> = RefCell::default();
}

impl Reader {
    /// A reader that finishes answers on the threads of `host`.
    pub(super) fn new(host: Cpu) -> Self {
        Self {
            host,
            questions: Questions::default(),
            scratch: None,
            answers: None,
            words: Vec::new(),
            rows: Vec::new(),
            spare: Spare::default(),
            kept: Vec::new(),
        }
    }

    pub(super) fn host(&self) -> &Cpu {
        &self.host
    }

    /// Takes what `tasks` want of the rows of `vocabulary` that lie at `logits`. Returns how long that took.
    pub(super) fn read(
        &mut self,
        gpu: &Gpu,
        logits: Address,
        vocabulary: usize,
        tasks: &mut [RowTask<'_>],
    ) -> Result<Duration, KernelError> {
        let row_at = |row: usize| logits + 4 * (row * vocabulary) as u64;
        self.questions.ask(vocabulary, tasks);
        let began = gpu.mark()?;
        self.kept.clear();
        for (row, task) in tasks.iter().enumerate() {
            let kept = task.keep.then(|| self.keep(gpu, row_at(row), vocabulary)).transpose()?;
            self.kept.push(kept);
        }
        let answers = self.launch(gpu, logits, tasks.len())?;
        let ended = gpu.mark()?;
        let first = if self.questions.is_empty() { 0 } else { self.questions.first_words() };
        self.words.clear();
        gpu.fetch(&[(answers, first)], &mut self.words)?;
        let (on_gpu, began) = (began.until(&ended)?, Instant::now());
        self.fetch_rest(gpu, answers, vocabulary, row_at)?;
        self.finish(vocabulary, tasks);
        for (task, kept) in tasks.iter_mut().zip(self.kept.drain(..)) {
            task.found.kept = kept.filter(|_| task.found.invalid.is_none()).map(KeptRow::on_gpu);
        }
        Ok(on_gpu + began.elapsed())
    }

    fn keep(&self, gpu: &Gpu, row: Address, vocabulary: usize) -> Result<Lent<GpuRow>, KernelError> {
        let mut kept = self.spare.lend();
        let memory = match kept.take() {
            // As long as the row: whoever reads it again takes its length for the vocabulary.
            Some(memory) if memory.len() == vocabulary => memory,
            _ => gpu.allocate(vocabulary)?,
        };
        gpu.copy_on_gpu(row, gpu.address(kept.insert(memory)), 4 * vocabulary)?;
        Ok(kept)
    }

    /// Queues all that is needed, and says where the answers will be.
    fn launch(&mut self, gpu: &Gpu, logits: Address, rows: usize) -> Result<Address, KernelError> {
        let Self { questions, scratch, answers, .. } = self;
        if questions.is_empty() {
            return Ok(0);
        }
        let scratch = gpu.address(reserve(gpu, scratch, questions.scratch_words())?);
        let answers = gpu.address(reserve(gpu, answers, questions.answer_words())?);
        let step = gpu.upload(questions.input([logits, scratch, answers]))?;
        let (needs, segments) = (questions.needs(), questions.segments());
        let (tasks, draws) = questions.tasks_and_draws();
        let launch = |name, is_needed, [x, y]: [usize; 2], threads| {
            if is_needed {
                gpu.launch(name, Size { blocks: [x as u32, y as u32, 1], threads, shared_bytes: 0 }, &[step]);
            }
        };
        launch("draw_maxima", true, [segments, rows], 256);
        launch("draw_weights", needs.totals, [segments, tasks], 256);
        launch("draw_probabilities", needs.probabilities, [segments, tasks], 256);
        launch("draw_thresholds", needs.thresholds, [tasks, 1], 1024);
        launch("draw_candidates", needs.candidates, [segments, tasks], 256);
        launch("draw_results", true, [tasks, 1], 256);
        launch("draw_tokens", needs.probabilities, [draws, 1], 256);
        Ok(answers)
    }

    /// Brings what the first answers show to be of interest.
    fn fetch_rest(
        &mut self,
        gpu: &Gpu,
        answers: Address,
        vocabulary: usize,
        row_at: impl Fn(usize) -> Address,
    ) -> Result<(), KernelError> {
        let Self { questions, words, rows, .. } = self;
        let (mut places, mut end) = (Vec::new(), words.len());
        if !questions.is_empty() {
            let wanted = questions.words_of_interest(words);
            if wanted > end {
                places.push((answers + 4 * end as u64, wanted - end));
                end = wanted;
            }
        }
        rows.clear();
        for row in 0..questions.rows() {
            let is_for_host = questions.is_for_host(words, row);
            rows.push(is_for_host.then_some(end));
            if is_for_host {
                places.push((row_at(row), vocabulary));
                end += vocabulary;
            }
        }
        if places.is_empty() { Ok(()) } else { gpu.fetch(&places, words) }
    }

    fn finish(&self, vocabulary: usize, tasks: &mut [RowTask<'_>]) {
        let Self { host, questions, words, rows, .. } = self;
        host.each(tasks, |row, task| match rows[row] {
            Some(at) => ROW.with_borrow_mut(|logits| {
                logits.clear();
                logits.extend(words[at..at + vocabulary].iter().map(|&bits| f32::from_bits(bits)));
                RowTask { keep: false, found: &mut *task.found, ..*task }.read(logits, &Spare::default());
            }),
            None => DESK.with_borrow_mut(|desk| questions.finish(words, row, task, desk)),
        });
    }
}

fn reserve<'a>(
    gpu: &Gpu,
    memory: &'a mut Option<CudaSlice<u32>>,
    words: usize,
) -> Result<&'a CudaSlice<u32>, KernelError> {
    let known = match memory.take() {
        Some(known) if known.len() >= words => known,
        _ => gpu.allocate(words.next_power_of_two())?,
    };
    Ok(memory.insert(known))
}
