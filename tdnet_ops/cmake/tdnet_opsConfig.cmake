# find_package(tdnet_ops): the target tdnet_ops::tdnet_ops, the library with the operators. Linking
# it registers torch.ops.tdnet; the program also links torch, which has to be there first.
if(NOT TARGET tdnet_ops::tdnet_ops)
  add_library(tdnet_ops::tdnet_ops SHARED IMPORTED)
  get_filename_component(folder ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
  set_target_properties(tdnet_ops::tdnet_ops PROPERTIES IMPORTED_LOCATION ${folder}/libtdnet_ops.so)
  # Nothing calls it by name: it must be loaded all the same.
  target_link_options(tdnet_ops::tdnet_ops INTERFACE LINKER:--no-as-needed)
endif()
