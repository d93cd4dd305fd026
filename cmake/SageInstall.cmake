# What `cmake --install` and the .deb put where: daemon, command, service, settings, rules and dashboards.
include(GNUInstallDirs)
set(SAGE_BIN_DIR ${CMAKE_INSTALL_FULL_BINDIR})
set(SAGE_DOC_DIR ${CMAKE_INSTALL_FULL_DATADIR}/doc/sagequant)
# A package under /usr keeps its settings in /etc.
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  set(SAGE_CONFIG_DIR /etc/sagequant)
else()
  set(SAGE_CONFIG_DIR ${CMAKE_INSTALL_FULL_SYSCONFDIR}/sagequant)
endif()
configure_file(${CMAKE_SOURCE_DIR}/deploy/systemd/sagequantd.service.in ${CMAKE_BINARY_DIR}/sagequantd.service @ONLY)
configure_file(${CMAKE_SOURCE_DIR}/deploy/systemd/postinst.in ${CMAKE_BINARY_DIR}/debian/postinst @ONLY
  FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
configure_file(${CMAKE_SOURCE_DIR}/deploy/systemd/postrm.in ${CMAKE_BINARY_DIR}/debian/postrm @ONLY
  FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
configure_file(${CMAKE_SOURCE_DIR}/deploy/systemd/prerm ${CMAKE_BINARY_DIR}/debian/prerm COPYONLY)
file(WRITE ${CMAKE_BINARY_DIR}/debian/conffiles "${SAGE_CONFIG_DIR}/sagequantd.yaml\n")

install(TARGETS sagequantd sage RUNTIME COMPONENT daemon)
foreach(alias sage-dev auri)
  install(FILES ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/${alias} DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT daemon)
endforeach()
install(FILES ${CMAKE_BINARY_DIR}/sagequantd.service DESTINATION lib/systemd/system COMPONENT daemon)
install(FILES deploy/systemd/sagequantd.yaml DESTINATION ${SAGE_CONFIG_DIR} COMPONENT daemon)
install(FILES deploy/prometheus/rules.yaml DESTINATION ${CMAKE_INSTALL_DATADIR}/sagequant/prometheus COMPONENT daemon)
install(DIRECTORY deploy/grafana/ DESTINATION ${CMAKE_INSTALL_DATADIR}/sagequant/grafana COMPONENT daemon
  FILES_MATCHING PATTERN "*.json")
install(FILES deploy/README.md RENAME operations.md DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/sagequant COMPONENT daemon)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME sagequant)
set(CPACK_PACKAGE_CONTACT "SageQuant maintainers <root@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Quantizes language models and serves them over gRPC")
set(CPACK_PACKAGING_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_COMPONENTS_ALL daemon)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ALL_COMPONENTS_IN_ONE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  "${CMAKE_BINARY_DIR}/debian/postinst;${CMAKE_BINARY_DIR}/debian/prerm;${CMAKE_BINARY_DIR}/debian/postrm"
  "${CMAKE_BINARY_DIR}/debian/conffiles")
include(CPack)
