//! Compiles the GPU kernels for the CPU (kernels/host) with the machine's C++ compiler, so that the CUDA backend runs,
//! and is tested, without a GPU. Sets `cfg(moe_host_harness)` if that worked; otherwise `MOE_HOST_HARNESS_MISSING` says
//! why, and the backend reports it when somebody asks for the harness.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(moe_host_harness)");
    println!("cargo::rerun-if-changed=../../kernels");
    println!("cargo::rerun-if-env-changed=CXX");
    let why = if env::var_os("CARGO_FEATURE_HOST_HARNESS").is_none() {
        "the feature host-harness is off".to_owned()
    } else {
        match build() {
            Ok(()) => {
                println!("cargo::rustc-cfg=moe_host_harness");
                String::new()
            }
            Err(why) => {
                println!("cargo::warning=built without the CUDA host harness: {why}");
                why
            }
        }
    };
    println!("cargo::rustc-env=MOE_HOST_HARNESS_MISSING={}", why.replace('\n', " "));
}

/// The static library of all kernels, linked; or one line that says what is missing.
fn build() -> Result<(), String> {
    let var = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    if var("CARGO_CFG_UNIX").is_err() {
        return Err("it needs a Unix system".into());
    }
    if var("TARGET")? != var("HOST")? && env::var_os("CXX").is_none() {
        return Err("cross-compiling without CXX set".into());
    }
    let compiler = compiler()?;
    let out = PathBuf::from(var("OUT_DIR")?).join("kernels");
    let kernels = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("../../kernels");
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |e: io::Error| format!("{what}: {e}")
    };
    fs::create_dir_all(&out).map_err(io(&out))?;

    let mut units: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(&kernels).map_err(io(&kernels))? {
        let path = entry.map_err(io(&kernels))?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            units.push(path);
        }
    }
    units.sort();
    units.push(kernels.join("host/faults.cu"));
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();

    // One call per unit, so that a static library keeps every unit and with it the kernels that register themselves.
    let mut table = String::from("// Written by the build script.\n");
    for unit in &units {
        let _ = writeln!(table, "extern \"C\" void moe_host_unit_{}();", stem(unit));
    }
    table.push_str("extern \"C\" void moe_host_keep_units() {\n");
    for unit in &units {
        let _ = writeln!(table, "    moe_host_unit_{}();", stem(unit));
    }
    table.push_str("}\n");
    let table_path = out.join("units.cpp");
    fs::write(&table_path, table).map_err(io(&table_path))?;

    let mut jobs: Vec<(PathBuf, Option<String>)> = units.iter().map(|u| (u.clone(), Some(stem(u)))).collect();
    jobs.push((kernels.join("host/host.cpp"), None));
    jobs.push((table_path, None));
    let parallel = var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    let mut objects = Vec::new();
    for batch in jobs.chunks(parallel) {
        let mut running = Vec::new();
        for (source, unit) in batch {
            let object = out.join(format!("{}.o", stem(source)));
            let mut command = Command::new(&compiler);
            // No contraction: the CPU's result is the formula's, whatever the processor; no C++ runtime is needed.
            command.args(["-std=c++17", "-O2", "-g0", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]);
            command.args(["-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-stack-protector"]);
            command.args(["-fcf-protection=none"].iter().filter(|_| cfg!(target_arch = "x86_64")));
            command.arg("-Wno-unknown-pragmas").arg("-I").arg(&kernels);
            if let Some(unit) = unit {
                command.arg("-include").arg(kernels.join("host/host.h"));
                command.arg(format!("-DMOE_HOST_UNIT={unit}"));
            }
            command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(&object);
            let child = command.spawn().map_err(|e| format!("{compiler}: {e}"))?;
            running.push((child, source));
            objects.push(object);
        }
        for (mut child, source) in running {
            let status = child.wait().map_err(|e| format!("{compiler}: {e}"))?;
            if !status.success() {
                return Err(format!("{compiler} could not compile {}: {status}", source.display()));
            }
        }
    }
    let library = out.join("libmoe_run_kernels.a");
    let _ = fs::remove_file(&library);
    let ar = env::var("AR").unwrap_or_else(|_| "ar".into());
    let status = Command::new(&ar).arg("crs").arg(&library).args(&objects).status();
    match status {
        Ok(s) if s.success() => {}
        Ok(s) => return Err(format!("{ar}: {s}")),
        Err(e) => return Err(format!("{ar}: {e}")),
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::metadata=library={}", library.display());
    println!("cargo::metadata=compiler={compiler}");
    println!("cargo::rustc-link-lib=static=moe_run_kernels");
    if var("CARGO_CFG_TARGET_OS")? == "linux" {
        println!("cargo::rustc-link-lib=m");
    }
    Ok(())
}

/// The C++ compiler: `CXX`, or the first usual name that answers.
fn compiler() -> Result<String, String> {
    if let Ok(named) = env::var("CXX") {
        return Ok(named);
    }
    let names = ["c++", "g++", "clang++"];
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    match names.iter().find(works) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(format!("no C++ compiler found (looked for CXX, {})", names.join(", "))),
    }
}
