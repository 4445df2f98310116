//! Wasmtime 0.33, the last release with a userfaultfd of its own.

#[path = "../../peer.rs"]
mod peer;

mod api {
    use crate::peer::{Sizes, wasi};
    use wasmtime::{
        Config, Engine, ExternType, Instance, InstanceAllocationStrategy, InstanceLimits,
        InstancePre, Linker, Module, ModuleLimits, PoolingAllocationStrategy, Store,
    };

    pub struct Supply {
        engine: Engine,
    }

    impl Supply {
        pub fn new(way: &str, sizes: &Sizes) -> Supply {
            assert_eq!(way, "uffd", "there is no such way");
            let mut config = Config::new();
            config.allocation_strategy(InstanceAllocationStrategy::Pooling {
                strategy: PoolingAllocationStrategy::default(),
                module_limits: ModuleLimits {
                    functions: sizes.functions,
                    types: 200,
                    imported_functions: 50,
                    globals: 50,
                    table_elements: sizes.table_elements,
                    memory_pages: sizes.max_memory_bytes as u64 >> 16,
                    ..Default::default()
                },
                // Of each instance there is one memory, needed or not.
                instance_limits: InstanceLimits { count: sizes.slots },
            });
            Supply {
                engine: Engine::new(&config).unwrap(),
            }
        }

        pub fn engine(&self) -> &Engine {
            &self.engine
        }

        pub fn describe(&self) -> String {
            String::new()
        }

        pub fn app(&self, wasm: &[u8]) -> App {
            let module = Module::from_binary(&self.engine, wasm).unwrap();
            let mut linker = Linker::new(&self.engine);
            for import in module.imports() {
                let ExternType::Func(ty) = import.ty() else {
                    panic!("{import:?} is no function");
                };
                let name = import.name().unwrap().to_string();
                linker
                    .func_new(
                        import.module(),
                        import.name().unwrap(),
                        ty,
                        move |caller, parameters, results| {
                            wasi(&name, caller, parameters, results);
                            Ok(())
                        },
                    )
                    .unwrap();
            }
            let mut store = Store::new(&self.engine, ());
            App {
                pre: linker.instantiate_pre(&mut store, &module).unwrap(),
            }
        }
    }

    pub struct App {
        pre: InstancePre<()>,
    }

    impl App {
        pub fn instantiate(&self, store: &mut Store<()>) -> Instance {
            self.pre.instantiate(store).unwrap()
        }
    }
}

fn main() {
    peer::main();
}
