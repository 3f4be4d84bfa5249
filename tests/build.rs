//! Compiles the stand-in for NVIDIA's driver library (stand-in/) with the compiler of the kernels' host harness, and links the
//! harness's kernels into it. `MOE_STAND_IN` is the folder that holds it, for `LD_LIBRARY_PATH`; empty where this build cannot
//! have one, and then `MOE_STAND_IN_MISSING` says why, or where its compilation failed, which `MOE_STAND_IN_BROKEN` tells.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SOURCES: [&str; 4] = ["ptx.cpp", "device.cpp", "stream.cpp", "launch.cpp"];

fn main() {
    println!("cargo::rerun-if-changed=stand-in");
    println!("cargo::rerun-if-changed=../kernels/host/host.h");
    let [mut folder, mut missing, mut broken] = [const { String::new() }; 3];
    match harness() {
        Err(why) => missing = why,
        Ok((library, compiler)) => match build(&library, &compiler) {
            Ok(made) => folder = made.display().to_string(),
            Err(why) => broken = why.replace('\n', " "),
        },
    }
    println!("cargo::rustc-env=MOE_STAND_IN={folder}");
    println!("cargo::rustc-env=MOE_STAND_IN_MISSING={missing}");
    println!("cargo::rustc-env=MOE_STAND_IN_BROKEN={broken}");
}

/// The harness's library and its compiler; or why this build has no use for them.
fn harness() -> Result<(String, String), String> {
    let var = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    if var("CARGO_CFG_TARGET_OS")? != "linux" {
        return Err("it needs Linux".into());
    }
    if var("TARGET")? != var("HOST")? {
        return Err("cross-compiling".into());
    }
    // Told by the build script of moe-run-backends, where it could compile the kernels.
    match (env::var("DEP_MOE_RUN_KERNELS_LIBRARY"), env::var("DEP_MOE_RUN_KERNELS_COMPILER")) {
        (Ok(library), Ok(compiler)) => Ok((library, compiler)),
        _ => Err("this build has no CUDA host harness".into()),
    }
}

fn build(library: &str, compiler: &str) -> Result<PathBuf, String> {
    println!("cargo::rerun-if-changed={library}");
    let out = env::var("OUT_DIR").map_err(|e| format!("OUT_DIR: {e}"))?;
    let folder = PathBuf::from(out).join("driver");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O1", "-g0", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]);
    // Only the driver's own functions are seen from outside: the program has the harness's too.
    command.args([
        "-fvisibility=hidden",
        "-Wl,-Bsymbolic",
        "-Wl,--exclude-libs,ALL",
        "-Wl,-soname,libcuda.so.1",
    ]);
    let table =
        fs::canonicalize("../kernels/ptxas-table.txt").map_err(|e| format!("ptxas-table.txt: {e}"))?;
    command.arg(format!("-DSTAND_IN_TABLE=\"{}\"", table.display()));
    command.args(["-I", "../kernels"]).args(SOURCES.map(|name| Path::new("stand-in").join(name)));
    let made = folder.join("libcuda.so.1");
    let output = command.arg(library).args(["-lm", "-lpthread", "-o"]).arg(&made).output();
    let output = output.map_err(|e| format!("{compiler}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{compiler}: {}: {said}", output.status));
    }
    for line in said.lines() {
        println!("cargo::warning={line}");
    }
    // A machine with NVIDIA's toolkit may have the other name: the stand-in must come first under both.
    let other = folder.join("libcuda.so");
    fs::copy(&made, &other).map_err(|e| format!("{}: {e}", other.display()))?;
    Ok(folder)
}
