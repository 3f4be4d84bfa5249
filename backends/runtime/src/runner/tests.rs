//! The runner over a recorder that writes down what it is asked for.

use super::*;
use crate::executable::{Activations, KvType, StepSequence, ValueAccess};
use moe_run_graph::ir::{Dim, Graph, LayerIdx, Lifetime, Op, Shape, StateId, StateRole};
use moe_run_graph::passes::{Launch, PlanOptions, TapSelection, none_alone, plan};
use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

const WIDTH: usize = 4;
const CAPACITY: usize = 8;

struct Rows(Vec<f32>);

impl State for Rows {
    fn capacity_tokens(&self) -> usize {
        CAPACITY
    }

    fn size_bytes(&self) -> u64 {
        0
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Keeps the words of every value, adds nothing up, and may be made to fail.
struct Written {
    info: ExecutableInfo,
    calls: Vec<String>,
    values: HashMap<ValueId, Vec<u32>>,
    fails: bool,
}

impl Recorder for Written {
    type State = Rows;

    fn info(&self) -> &ExecutableInfo {
        &self.info
    }

    fn new_state(&self) -> Result<Rows, BackendError> {
        Ok(Rows(vec![0.0; CAPACITY * WIDTH]))
    }

    fn fits(&self, state: &Rows) -> bool {
        state.0.len() == CAPACITY * WIDTH
    }

    fn choose_next(&mut self, row: &LogitsRow) -> Result<Option<TokenId>, BackendError> {
        self.calls.push(format!("choose {} of class {}", row.row, row.class));
        Ok(None)
    }

    fn begin(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        let inputs = step.inputs();
        let given: Vec<String> = inputs.iter().map(|(_, words)| format!("{words:?}")).collect();
        self.calls.push(format!("begin {}: {}", step.class, given.join(" ")));
        self.values.extend(inputs.into_iter().filter_map(|(id, words)| Some((id, words?.to_vec()))));
        Ok(())
    }

    fn run(&mut self, step: &Step<'_>, _state: &mut Rows) -> Result<(), BackendError> {
        self.calls.push(format!("run {}", step.class));
        if self.fails { Err(BackendError::Input("made to fail".into())) } else { Ok(()) }
    }

    fn run_launch(
        &mut self,
        step: &Step<'_>,
        launch: usize,
        _state: &mut Rows,
    ) -> Result<Duration, BackendError> {
        self.calls.push(format!("launch {launch} of {}", step.plan.launches.len()));
        Ok(Duration::ZERO)
    }

    fn read(
        &mut self,
        _class: usize,
        _sizes: StepSizes,
        value: ValueId,
    ) -> Result<Option<Cow<'_, [u32]>>, BackendError> {
        Ok(self.values.get(&value).map(|words| Cow::Borrowed(words.as_slice())))
    }

    fn write(
        &mut self,
        _class: usize,
        _sizes: StepSizes,
        value: ValueId,
        words: &[u32],
    ) -> Result<bool, BackendError> {
        Ok(self.values.insert(value, words.to_vec()).is_some())
    }

    fn read_state(
        &mut self,
        state: &Rows,
        _id: StateId,
        slots: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        Ok(state.0[slots.start * WIDTH..slots.end * WIDTH].to_vec())
    }

    fn write_state(
        &mut self,
        state: &mut Rows,
        _id: StateId,
        first_slot: usize,
        rows: &[f32],
    ) -> Result<(), BackendError> {
        state.0[first_slot * WIDTH..][..rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn logits(&mut self, row: &LogitsRow, out: &mut Vec<f32>) -> Result<(), BackendError> {
        out.clear();
        out.resize(row.width, row.row as f32);
        Ok(())
    }

    fn argmax(&mut self, row: &LogitsRow) -> Result<TokenId, BackendError> {
        Ok(TokenId(row.choosable as u32))
    }

    fn candidates(
        &mut self,
        _row: &LogitsRow,
        _count: usize,
        _out: &mut Vec<(TokenId, f32)>,
    ) -> Result<(), BackendError> {
        Ok(())
    }

    fn taken(&mut self) -> Result<TokenId, BackendError> {
        Ok(TokenId(0))
    }
}

/// The boundary input, and what is made of it: twice it, its square, the rows of logits.
fn graph() -> (Graph, [ValueId; 4]) {
    let mut graph = Graph::new();
    graph.num_layers = 1;
    graph.add_state(StateRole::Key, LayerIdx(0), 1, WIDTH, Lifetime::PerToken { window: None });
    let x = graph.add_boundary(Shape::new(&[Dim::Tokens, Dim::Fixed(WIDTH)]), DType::F32);
    let sum = graph.push(None, "sum", Op::Add, &[x, x]).unwrap()[0];
    let square = graph.push(None, "square", Op::Mul, &[sum, sum]).unwrap()[0];
    let rows = graph.inputs.logits_rows;
    graph.outputs = graph.push(None, "logits_rows", Op::GetRows, &[square, rows]).unwrap();
    let logits = graph.outputs[0];
    (graph, [x, sum, square, logits])
}

fn runner() -> (Runner<Written>, [ValueId; 4]) {
    let (graph, values) = graph();
    let plan_for = |tokens| {
        let max_sizes = StepSizes { tokens, logits_rows: 2, cached: CAPACITY };
        let taps = TapSelection::None;
        let options = PlanOptions { taps: &taps, patterns: &[], alone: &none_alone, max_sizes };
        Arc::new(plan(&graph, &options).unwrap())
    };
    let info = ExecutableInfo {
        backend: "written",
        device: "paper".into(),
        activations: Activations::F32,
        q8_super_block: None,
        kv_type: KvType::F32,
        threads: 1,
        micro_batch: 3,
        weight_bytes: 0,
    };
    let words = vec![1.5f32.to_bits(); 3 * WIDTH];
    let held = values.map(|id| (id, words.clone()));
    let recorder = Written { info, calls: Vec::new(), values: held.into(), fails: false };
    (Runner::new(recorder, vec![plan_for(1), plan_for(3)]), values)
}

/// A sequence that has the whole state.
const ALL: StepSequence<'_> = StepSequence { blocks: &[0], place: 0 };

const THREE: StepInput<'_> = StepInput {
    tokens: StepTokens::Host(&[TokenId(7), TokenId(8), TokenId(9)]),
    positions: &[0, 1, 2],
    sequence: &[0, 0, 0],
    kv_slots: &[0, 1, 2],
    sequences: &[ALL],
    logits_rows: &[0, 2],
};

#[test]
fn a_step_is_checked_begun_and_run_in_that_order() {
    let (mut runner, _) = runner();
    let mut state = runner.new_state().unwrap();
    assert!(runner.logits(0, &mut Vec::new()).is_err(), "nothing has run");
    runner.step(state.as_mut(), &THREE, None).unwrap();
    let mut row = Vec::new();
    runner.logits(1, &mut row).unwrap();
    assert_eq!(row, [1.0; WIDTH]);
    assert_eq!(runner.argmax(0).unwrap(), TokenId(WIDTH as u32));
    let text = runner.logits(2, &mut row).unwrap_err().to_string();
    assert!(text.contains("row 2 of 2 rows of logits"), "{text}");

    // Its token is the one that the device chose from the step before: written by nobody.
    let next = StepInput {
        tokens: StepTokens::Argmax { row: 1 },
        positions: &[3],
        sequence: &[0],
        kv_slots: &[3],
        sequences: &[ALL],
        logits_rows: &[0],
    };
    runner.step(state.as_mut(), &next, None).unwrap();
    let wanted = [
        "begin 1: Some([7, 8, 9]) Some([0, 1, 2]) Some([0, 0, 0]) Some([0, 1, 2]) Some([0, 2])",
        "run 1",
        "choose 1 of class 1",
        "begin 0: None Some([3]) Some([0]) Some([3]) Some([0])",
        "run 0",
    ];
    assert_eq!(runner.recorder.calls, wanted);
    assert!(runner.output(1).is_err() && runner.output(0).is_ok());

    runner.recorder.fails = true;
    assert!(runner.step(state.as_mut(), &THREE, None).is_err());
    assert!(
        runner.logits(0, &mut row).is_err() && runner.output(0).is_err(),
        "a step that failed has no rows"
    );
}

#[test]
fn what_is_given_is_used_once_and_launches_run_alone() {
    let (mut runner, [x, sum, _, _]) = runner();
    let mut state = runner.new_state().unwrap();
    let tensor = |rows: usize, value: f32| HostTensor::f32(vec![rows, WIDTH], vec![value; rows * WIDTH]);
    let held = |runner: &Runner<Written>| f32::from_bits(runner.recorder.values[&x][0]);
    assert!(matches!(runner.give(sum, tensor(3, 2.0)), Err(BackendError::Value { .. })), "no boundary input");
    runner.give(x, tensor(3, 2.0)).unwrap();
    runner.give(x, tensor(3, 3.0)).unwrap();
    runner.step_launches(state.as_mut(), &THREE, &[1]).unwrap();
    assert_eq!(held(&runner), 3.0, "what was given last");
    assert_eq!(runner.recorder.calls[1..], ["launch 1 of 3"]);
    // The next step has its own, and runs whole.
    runner.recorder.values.insert(x, vec![0; 3 * WIDTH]);
    runner.step(state.as_mut(), &THREE, None).unwrap();
    assert_eq!((held(&runner), runner.recorder.calls[3].as_str()), (0.0, "run 1"));
    // Of another shape it is refused, and forgotten.
    runner.give(x, tensor(2, 4.0)).unwrap();
    assert!(matches!(runner.step(state.as_mut(), &THREE, None), Err(BackendError::Value { .. })));
    runner.step(state.as_mut(), &THREE, None).unwrap();
    assert_eq!(held(&runner), 0.0);
    // To a pool whose sequences run one after another nothing can be given.
    let mut pool = runner.new_pool(CAPACITY, 1).unwrap();
    runner.give(x, tensor(3, 5.0)).unwrap();
    assert!(matches!(runner.step(pool.as_mut(), &THREE, None), Err(BackendError::Value { .. })));
    assert!(!runner.runs_together());
}

#[test]
fn states_of_others_are_refused() {
    let (mut runner, _) = runner();
    let refused = |runner: &mut Runner<Written>, state: &mut dyn State| {
        runner.step(state, &THREE, None).unwrap_err().to_string()
    };
    assert!(refused(&mut runner, &mut Rows(Vec::new())).contains("another executable"));
    struct Other;
    impl State for Other {
        fn capacity_tokens(&self) -> usize {
            CAPACITY
        }
        fn size_bytes(&self) -> u64 {
            0
        }
        fn as_any_mut(&mut self) -> &mut dyn Any {
            self
        }
    }
    assert!(refused(&mut runner, &mut Other).contains("another backend"));
    assert!(runner.recorder.calls.is_empty(), "refused before anything is begun");
}

/// Reads and replaces at the first launch, and keeps what was answered.
struct Meddler {
    values: [ValueId; 4],
    answers: Vec<Result<(), String>>,
    shown: Vec<HostTensor>,
}

impl Observer for Meddler {
    fn before_launch(
        &mut self,
        _plan: &Plan,
        launch: &Launch,
        values: &mut dyn ValueAccess,
    ) -> Result<(), BackendError> {
        if launch.id.0 != 0 {
            return Ok(());
        }
        let [x, _, square, _] = self.values;
        let tensor = |rows: usize| HostTensor::f32(vec![rows, WIDTH], vec![2.5; rows * WIDTH]);
        let ids = HostTensor::u32(vec![3, WIDTH], vec![1; 3 * WIDTH]);
        let state = StateId(0);
        let answers = [
            values.write(x, &tensor(3)),
            values.write(x, &tensor(2)),
            values.write(x, &ids),
            values.read(square).map(drop),
            values.write_state(state, 6, &[1.0; 2 * WIDTH]),
            values.write_state(state, 7, &[1.0; 2 * WIDTH]),
            values.write_state(state, 0, &[1.0; WIDTH + 1]),
            values.read_state(state, 0..CAPACITY + 1).map(drop),
            values.read_state(state, usize::MAX - 1..usize::MAX).map(drop),
        ];
        self.answers.extend(answers.map(|answer| answer.map_err(|e| e.to_string())));
        self.shown.push(values.read(x)?);
        assert_eq!(values.read_state(state, 5..7)?, [[0.0; WIDTH], [1.0; WIDTH]].concat());
        Ok(())
    }
}

#[test]
fn an_observer_is_told_what_it_cannot_have() {
    let (mut runner, values) = runner();
    let mut state = runner.new_state().unwrap();
    let mut meddler = Meddler { values, answers: Vec::new(), shown: Vec::new() };
    runner.step(state.as_mut(), &THREE, Some(&mut meddler)).unwrap();
    assert_eq!(runner.recorder.calls[1..], ["launch 0 of 3", "launch 1 of 3", "launch 2 of 3"]);
    assert_eq!(meddler.shown, [HostTensor::f32(vec![3, WIDTH], vec![2.5; 3 * WIDTH])]);
    let wanted = [
        None,
        Some("shape [2, 4], wanted [3, 4]"),
        Some("elements of another type, wanted F32"),
        Some("from launch 1 to 2, not at 0"),
        None,
        Some("2 rows from 7 on, of 8"),
        Some("5 elements, wanted rows of 4"),
        Some("9 rows from 0 on, of 8"),
        Some("of 8"),
    ];
    assert_eq!(meddler.answers.len(), wanted.len());
    for (answer, wanted) in meddler.answers.iter().zip(wanted) {
        match (answer, wanted) {
            (Ok(()), None) => {}
            (Err(text), Some(wanted)) => assert!(text.contains(wanted), "{text}, wanted {wanted}"),
            other => panic!("{other:?}"),
        }
    }
}
