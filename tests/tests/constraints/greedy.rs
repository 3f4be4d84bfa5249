//! The tiny model, held to random schemas: its own choices end, and are valid.

use std::ops::ControlFlow;

use moe_run_backends::{
    BackendError, CompileOptions,
    generate::{self, ConstraintFailure, GenerateOptions, StopReason},
    sampler::{Sampler, SamplerOptions},
    session::Session,
};
use moe_run_graph::{Model, ids::TokenId};
use moe_run_tests::{backends, fixtures};
use moe_run_text::{
    constraint::{Constraint, Lead, Rule, Vocabulary},
    tokenizer::{ControlTokens, Tokenizer},
};
use serde_json::Value;

use super::{Random, schemas, validate};

struct Held(Constraint);

impl generate::Constraint for Held {
    fn allowed(&mut self) -> Result<&[u32], ConstraintFailure> {
        Ok(self.0.allowed()?.words())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintFailure> {
        Ok(self.0.accept(token)?)
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}

#[test]
fn a_greedy_model_gives_valid_values_and_ends() {
    let model = Model::open(&fixtures::tiny_q4_k_m()).unwrap();
    let tokenizer = Tokenizer::from_metadata(model.metadata()).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let backend = backends().into_iter().find(|backend| backend.name() == "cpu").unwrap();
    let options = CompileOptions { ctx_size: 1024, ..CompileOptions::default() };
    let executable = backend.compile(&model.graph, model.file.clone(), &options).unwrap();
    let mut session = Session::new(executable).unwrap();
    let prompt = tokenizer.encode("The answer as JSON:", ControlTokens::Parse).unwrap();
    let mut random = Random(0x6EED);
    let mut values = Vec::new();
    let mut complete = 0;
    for round in 0..200 {
        let schema = schemas::root(&mut random, true);
        let rule = Rule::JsonSchema(schema.clone());
        let mut held = Held(vocabulary.constrain(&rule, &Lead::default()).unwrap());
        // Most greedy, some drawn: the constraint comes before both.
        let temperature = if round % 4 == 3 { 1.5 } else { 0.0 };
        let sampling = SamplerOptions { temperature, seed: round, ..SamplerOptions::GREEDY };
        let mut sampler = Sampler::new(sampling).unwrap();
        let is_end = |token| tokenizer.is_end_of_generation(token);
        let options =
            GenerateOptions { max_tokens: Some(900), is_end: &is_end, ..GenerateOptions::default() };
        let generated =
            generate::generate(&mut session, &mut sampler, &prompt, &options, Some(&mut held), None, |_| {
                Ok::<_, BackendError>(ControlFlow::Continue(()))
            })
            .unwrap();
        assert!(generated.failure.is_none(), "{:?}: {schema}", generated.failure);
        let text = tokenizer.decode(&generated.tokens).unwrap();
        match generated.stop_reason {
            StopReason::ConstraintComplete => complete += 1,
            StopReason::EndToken => {}
            other => panic!("{other:?}: {schema} {text:?}"),
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        values.push((schema, value));
    }
    // Behind the last bracket of an object nothing can come: it ends there.
    assert_eq!(complete, 200);
    validate(&values);
}
