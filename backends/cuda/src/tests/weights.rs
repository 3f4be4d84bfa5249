//! Weights on a driver that counts: uploaded once, held once, given back.

use super::{Changed, compile, loaded_once, options, refused};
use crate::Cuda;
use crate::driver::Driver;
use crate::load::load;
use moe_run_graph::ir::{Graph, LaunchPattern, Node};
use moe_run_graph::quant::{ActBlock, ActProfile, Format};
use moe_run_inspect::cases;
use moe_run_runtime::error::BackendError;
use moe_run_runtime::executable::{
    Activations, Backend, CompileOptions, DeviceInfo, KvType, WeightSource, Weights,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The backend on a driver that is open.
struct On(Arc<dyn Driver>);

impl Backend for On {
    fn name(&self) -> &'static str {
        Cuda.name()
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>, BackendError> {
        Ok(Vec::new())
    }

    fn patterns(&self, tokens: usize, options: &CompileOptions) -> Vec<LaunchPattern> {
        Cuda.patterns(tokens, options)
    }

    fn supports(&self, graph: &Graph, node: &Node) -> Result<(), BackendError> {
        Cuda.supports(graph, node)
    }

    fn q8_super_blocks(&self) -> &'static [ActBlock] {
        Cuda.q8_super_blocks()
    }

    fn profile(&self, options: &CompileOptions) -> ActProfile {
        Cuda.profile(options)
    }

    fn load(
        &self,
        graph: &Graph,
        source: Arc<dyn WeightSource>,
        options: &CompileOptions,
    ) -> Result<Arc<dyn Weights>, BackendError> {
        Ok(Arc::new(load(&|| Ok(Arc::clone(&self.0)), graph, source.as_ref(), options)?))
    }
}

#[test]
fn weights_are_loaded_once_whatever_is_compiled() {
    let driver = Changed::new();
    let counts = Arc::clone(&driver.counts);
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let free = driver.memory().unwrap();
    let uploaded = || counts.staged_bytes.load(Ordering::Relaxed) as u64;
    loaded_once::check(&On(Arc::clone(&driver)), &uploaded);
    assert_eq!(driver.memory().unwrap(), free, "everything is given back");
}

/// Where nothing but the weights is on the device, each further executable takes less than they do.
#[test]
fn executables_hold_the_weights_together() {
    let case = cases::case("embed", Format::Q8_0, 1).unwrap().unwrap();
    let driver: Arc<dyn Driver> = Arc::new(Changed::new());
    let used = || driver.memory().map(|(free, all)| all - free).unwrap();
    let options = options(&case, Activations::F32, KvType::F16);
    let weights = load(&|| Ok(Arc::clone(&driver)), &case.graph, case.weights.as_ref(), &options).unwrap();
    let loaded = used();
    assert!(loaded >= weights.size_bytes);
    let one = weights.executable(&case.graph, &options).unwrap();
    let each = used() - loaded;
    let other = weights.executable(&case.graph, &options).unwrap();
    assert_eq!(used(), loaded + 2 * each);
    drop(weights);
    assert_eq!(used(), loaded + 2 * each, "an executable holds what it reads");
    drop(one);
    assert_eq!(used(), loaded + each);
    drop(other);
    assert_eq!(used(), 0);
}

/// Loaded weights have their place: they count as memory that is there, and the rest must fit beside them.
#[test]
fn a_later_context_that_does_not_fit_says_what_would() {
    let case = cases::case("attention", Format::F32, 1).unwrap().unwrap();
    let mut driver = Changed::new();
    let fits = options(&case, Activations::F32, KvType::F16);
    let free = 64 << 20;
    driver.free_bytes = Some(free);
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let weights = load(&|| Ok(Arc::clone(&driver)), &case.graph, case.weights.as_ref(), &fits).unwrap();
    let larger = CompileOptions { ctx_size: 1 << 24, ..fits.clone() };
    let text = refused(weights.executable(&case.graph, &larger));
    let available = (free + weights.size_bytes).to_string();
    for wanted in
        ["bytes of weights, which are loaded,", "of KV cache for 16777216", "--ctx-size", &available]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    weights.executable(&case.graph, &fits).unwrap();
    assert!(
        refused(compile(driver, &case.graph, case.weights.as_ref(), &larger)).contains("bytes of weights +")
    );
}
