-- A study that has become stable goes to medfuse, which sends back what it makes of it. The series that medfuse has made
-- stay here: they make the study stable once more, and that must not start it all over again.

local function is_ours(series)
  local instance = ParseJson(RestApiGet('/series/' .. series)).Instances[1]
  local tags = ParseJson(RestApiGet('/instances/' .. instance .. '/simplified-tags'))
  return tags.Manufacturer == 'medfuse' and tags.ManufacturerModelName == 'medfuse'
end

function OnStableStudy(study, tags, metadata)
  local resources = {}
  for _, series in pairs(ParseJson(RestApiGet('/studies/' .. study)).Series) do
    if not is_ours(series) then
      table.insert(resources, series)
    end
  end
  if #resources > 0 then
    -- Not `Permissive`: such a job would be a success where medfuse was not reached at all.
    RestApiPost('/modalities/medfuse/store', DumpJson({ Resources = resources, Asynchronous = true }, true))
  end
end
